"""Everything that is read from a Dagster instance, and everything that is stored in its runs.

Besides the public methods of `DagsterInstance`, only the following names are used. Dagster+ serves
all of them.

`add_run_tags`
    Tags are the only state of a run that outlives its worker. No public method writes them.
`all_instigator_state`
    Lists the sensors of all code locations. Shows whether a person has changed them, and when the
    daemon last evaluated automation conditions. In the public API only GraphQL does.
`all_logs`
    Shows whether a step waits for a slot. No public method returns the events of a run.
`defs_state_storage`
    Has the last state of a component. The component itself reads the state of the last load.
`event_log_storage`
    Returns the last evaluations of many checks with one query. Public methods return those of one
    check.
`fetch_planned_materializations`
    Shows whether a Dagster run was created before or after an update, by the event log's order.
    It is public, but deprecated until Dagster 2.0, and no other public method does this.
`from_ref`
    Opens one instance for all ticks of a process. The tick's context opens one for each tick.
`get_event_records`
    Of `event_log_storage`: returns the events of all assets since a position, with one query.
    Public methods return those of one asset, so a quiet tick would make a query per dependency.
    `DagsterInstance` has a method of this name, too, which is deprecated and not public.
`get_instigator_state`
    Shows whether another process has taken over an observation sensor. `all_instigator_state` does,
    too, but reads all sensors.
`get_latest_storage_id_by_partition`
    Returns the partitions that were materialized, and the position of the last event of each, with
    one query. Public methods return single events.
`get_records_for_run`
    Shows what a Dagster run was created for, and in which order it has materialized assets and
    launched DAGs. No public method returns the events of a run.
`get_run_step_stats`
    Shows which steps are running. No public method does.
`get_settings`
    Shows whether the daemon evaluates sensors in parallel. No public method does.
`get_ticks`
    Distinguishes a sensor whose cursor was reset from one that ticks for the first time. In the
    public API only GraphQL does.
`optimize_for_webserver`
    Keeps a connection to PostgreSQL or MySQL between ticks. No public method does. PostgreSQL
    spends more time on new connections than on this project's queries.
`report_run_failed`
    Ends a run whose worker died. In the public API only GraphQL can, which needs the webserver.

`deployment.py` imports one private module, `definitions_load_context`, and gives the reason.
"""
