"""What is asked of a Dagster instance, and what is kept in it.

Of `DagsterInstance`, public methods are called, and these. Dagster+ serves all of them.

`add_run_tags`
    Tags are the only state of a run that outlives its worker. No public method writes them.
`all_instigator_state`
    Tells which sensors run in other code locations. In the public API only GraphQL does.
`all_logs`
    Tells whether a step waits for its turn. No public method tells the events of a run.
`defs_state_storage`
    Tells the last state of a component. What the component itself reads is as old as the last load.
`event_log_storage`
    Tells the last evaluations of many checks with one query. Public methods tell those of one.
`fetch_planned_materializations`
    Tells whether a Dagster run was created before or after an update, by the event log's order.
    It is public, and deprecated until Dagster 2.0 without another that does.
`from_ref`
    Opens one instance for all ticks of a process. What public members offer is opened for each.
`get_event_records`
    Of `event_log_storage`: tells what happened to all assets since a position, with one query.
    Public methods tell that of one asset, so that a quiet tick would make a query per dependency.
    The method of this name of `DagsterInstance` is not public either, and deprecated.
`get_instigator_state`
    Tells whether another process has taken over an observation. `all_instigator_state` does, too,
    but reads all sensors.
`get_latest_storage_id_by_partition`
    Tells all partitions that were materialized, and where the last event of each is, with one
    query. Public methods tell it event by event.
`get_run_step_stats`
    Tells which steps are at work. What public methods return of a run does not.
`get_settings`
    Tells whether the daemon evaluates sensors in parallel. No public method does.
`get_ticks`
    Tells a sensor whose cursor was reset from one that ticks for the first time. In the public API
    only GraphQL does.
`optimize_for_webserver`
    Keeps a connection to PostgreSQL or MySQL between ticks. No public method does, and PostgreSQL
    spends more time on new connections than on our queries.
`report_run_failed`
    Ends a run whose worker died. In the public API only GraphQL can, which needs the webserver.

One private module is imported, `definitions_load_context`, by `deployment.py`, which says why.
"""
