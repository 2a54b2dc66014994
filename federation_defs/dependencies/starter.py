"""Requests runs of DAGs for the events that led to them: in order, not more than may run at a time,
when upstreams have the partitions that are needed, and as `only_if` and `reruns` say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.event_log import (
    build_upstream_event,
    fetch_event,
    fetch_last_materializations,
    fetch_materialized_partitions,
)
from federation_defs.dagster_io.run_tags import Request, has_requested
from federation_defs.dependencies.decider import (
    Cause,
    Downstream,
    Due,
    Waiting,
    drop_causes,
    find_due,
)
from federation_defs.dependencies.only_if import ask
from federation_defs.dependencies.record import Run, Skip
from federation_defs.dependencies.runs import Memory, Runs
from federation_defs.errors import DecisionError
from federation_defs.events import build_decision_events, build_start_observation
from federation_defs.naming import build_cause_tag, build_monitor_tags
from federation_defs.outcome import join_names
from federation_defs.timing import Timing

_MAX_FAILURES = 3  # of `only_if`, about one event
_START_S = 20.0  # for all that a tick starts; Dagster ends a tick after 60 s
_MAX_REFERENCES = 20  # PostgreSQL's index of tags takes 2,700 bytes (dagster 1.13)

_Event = dg.AssetObservation | dg.AssetCheckEvaluation


class Starter:
    """Requests the runs of one tick.

    Args:
        lacking: What partitions lack, in words. Only an event about the partition, which is another
            cause, can change it. It is updated.
        shared: As `Runs` takes it.
    """

    def __init__(
        self,
        client: AirflowClient,
        instance: dg.DagsterInstance,
        lacking: Memory,
        shared: Memory,
        timing: Timing,
    ) -> None:
        self._instance = instance
        self._lacking = lacking
        self._runs = Runs(client, instance, shared, timing)
        self._timing = timing
        self._until = timing.monotonic() + _START_S
        self._requests: list[dg.RunRequest] = []
        self._events: list[_Event] = []
        self._waiting: list[str] = []
        self._announced: list[str] = []
        self._has_succeeded = cache(self._fetch_has_succeeded)

    def start(self, dag: Downstream, waiting: Waiting) -> None:
        """Request as many of a DAG's due runs as may begin now, and remove them from what waits."""
        lacking: list[str] = []
        is_ready = False
        for due in find_due(dag, waiting):
            if (lacks := self._find_lacking(dag, due)) is not None:
                lacking.append(f"{due.partition} {lacks}")
                continue
            is_ready = True
            if not self._start(dag, waiting, due):
                break
        if lacking:
            self._note(dag, join_names(lacking))
        elif not is_ready:
            self._note_latched(dag, waiting)

    def _start(self, dag: Downstream, waiting: Waiting, due: Due) -> bool:
        """Request a due run if it may begin now. Return whether a later one of the DAG may."""
        if self._timing.monotonic() > self._until:
            self._wait(dag, waiting, due, "this tick has taken long enough")
            return False
        if has_requested(self._instance, _build_run_key(dag, due)):
            drop_causes(waiting, due)  # the tick's cursor was not stored
            return True
        earlier = self._runs.find_earlier_run(dag, due)
        if earlier is not None and dag.trigger.reruns == "ignore":
            drop_causes(waiting, due)
            return True
        if (why := self._runs.find_obstacle(dag, earlier)) is not None:
            self._wait(dag, waiting, due, why)
            return False
        if due.partition is not None and due.partition in self._runs.find_partitions(dag):
            self._wait(dag, waiting, due, "a run of this partition goes on")
            return True
        shared = self._runs.find_shared_run(dag, due)
        if shared is not None and not shared.is_finished:
            self._wait(dag, waiting, due, f"Dagster run {shared.run_id} runs both")
            return True
        if shared is not None:
            drop_causes(waiting, due)
            return True
        if (answer := self._decide(dag, waiting, due)) is None:
            self._wait(dag, waiting, due, "`only_if` has not answered yet")
            return False
        if isinstance(answer, Run):
            self._request(dag, due, answer.conf, earlier)
        drop_causes(waiting, due)
        return True

    def drop_requested(
        self, dag: Downstream, waiting: Waiting, partitions: Collection[str | None]
    ) -> None:
        """Remove what was requested of some partitions from what waits. The tick that did so may
        have failed before its cursor was stored. With `when: all`, the next event would otherwise
        lead to another run for the same causes."""
        known = {each: waiting[each] for each in partitions if each in waiting}
        for due in find_due(dag, known):
            if has_requested(self._instance, _build_run_key(dag, due)):
                drop_causes(waiting, due)

    def note_gone(self, dag: Downstream, partitions: Sequence[str | None]) -> None:
        """Note which partitions waited that the DAG does not have any more."""
        if names := [partition for partition in partitions if partition is not None]:
            self._note(dag, f"dropped, as it has no such partitions now: {join_names(names)}")

    def announce(self, dag: Downstream, upstreams: Collection[dg.AssetKey]) -> None:
        """Tell, on the DAG's asset and in the tick, which dependencies count from now on."""
        names = [f"{edge.name} ({edge.state})" for edge, _ in dag.edges if edge.key in upstreams]
        self._events.append(build_start_observation(dag.instance, dag.dag_id, names))
        self._announced.append(dag.dag_id)

    # What partitions lack

    def _find_lacking(self, dag: Downstream, due: Due) -> str | None:
        """Find what a partition lacks, as the end of a sentence; None if it lacks nothing."""
        if due.partition is None:
            return None
        if not dag.mappings[0].downstream.has_partition_key(due.partition):
            return "has not begun"
        if dag.trigger.runs == "each":
            return None
        for edge, mapping in dag.edges:
            is_needed = edge.state == "success" and mapping and mapping.upstream is None
            if is_needed and not self._has_succeeded(edge.key):
                return f"waits for the first success of {edge.name}"
        lacks = self._lacking.get(dag, due) or self._fetch_lacking(dag, due.partition)
        self._lacking.keep(dag, due, lacks)
        return lacks

    def _fetch_lacking(self, dag: Downstream, partition: str) -> str | None:
        for edge, mapping in dag.edges:
            if edge.state == "success" and mapping is not None:
                needed, count = mapping.find_needed(partition)
                found = fetch_materialized_partitions(self._instance, edge.key, needed)
                if len(found) < count:
                    return f"has {len(found)} of {count} partitions of {edge.name}"
        return None

    def _fetch_has_succeeded(self, key: dg.AssetKey) -> bool:
        return bool(fetch_last_materializations(self._instance, [key]))

    def build_result(self, cursor: str) -> dg.SensorResult:
        """Build what the sensor returns."""
        reason = "; ".join(self._waiting) or "Nothing has happened upstream that starts a DAG."
        if self._announced:
            reason = f"What happens from now on counts for {join_names(self._announced)}."
        is_told = self._requests or (self._events and not self._announced)
        return dg.SensorResult(
            run_requests=self._requests,
            asset_events=self._events,
            skip_reason=None if is_told else reason,
            cursor=cursor,
        )

    def _request(
        self, dag: Downstream, due: Due, conf: Mapping[str, Any] | None, clears: str | None
    ) -> None:
        airflow, last = dag.instance, due.causes[-1]
        events = [(each.edge.key, each.position) for each in due.causes[-_MAX_REFERENCES:]]
        request = Request(events, conf, clears, self._find_logical_date(dag, last))
        self._requests.append(
            dg.RunRequest(
                run_key=_build_run_key(dag, due),
                asset_selection=[dag.key],
                partition_key=due.partition,
                tags={
                    **build_monitor_tags(airflow),
                    **request.build_tags(airflow, dag.dag_id),
                    build_cause_tag(airflow, dag.dag_id): last.label,
                },
            )
        )
        self._runs.add(dag, due, clears or _build_run_key(dag, due))  # its id is not known yet

    def _find_logical_date(self, dag: Downstream, cause: Cause) -> datetime | None:
        """Find the logical date of the upstream run, if the DAG's run is to have it."""
        if dag.trigger.logical_date != "upstream":
            return None
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        return event and build_upstream_event(event, "", "").logical_date

    # What a function of the user decides

    def _decide(self, dag: Downstream, waiting: Waiting, due: Due) -> Run | Skip | None:
        """Ask `only_if` about the newest event. No answer: it is asked again at the next tick."""
        if (function := dag.trigger.only_if) is None:
            return Run()
        if self._timing.monotonic() > self._until:
            return None
        cause = due.causes[-1]
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        if event is None:
            return Skip("the event was deleted")
        problem, failures = None, waiting[due.partition].failures + 1
        try:
            answer = ask(function, build_upstream_event(event, cause.edge.name, dag.name))
            said = f"`only_if` says: {answer.reason if isinstance(answer, Skip) else 'run'}"
        except DecisionError as error:
            said = problem = str(error)
            answer = Skip(said) if failures >= _MAX_FAILURES else None
            waiting[due.partition] = replace(waiting[due.partition], failures=failures)
        self._events += build_decision_events(
            dag.key,
            cause.edge.name,
            cause.run_id,
            said,
            is_error=problem is not None,
            is_final=answer is not None,
        )
        return answer

    # What waits

    def _note_latched(self, dag: Downstream, waiting: Waiting) -> None:
        """Note which dependencies a DAG still waits for, if others have counted since its last
        run."""
        notes: list[str] = []
        for partition, state in waiting.items():
            counted = [cause.edge for cause in state.causes]
            missing = [
                f"{edge.name} ({edge.state})" for edge, _ in dag.edges if edge not in counted
            ]
            which = "" if partition is None else f"{partition} "
            notes.append(f"{which}waits for {join_names(missing)}")
        if notes:
            self._note(dag, join_names(notes))

    def _wait(self, dag: Downstream, waiting: Waiting, first: Due, why: str) -> None:
        is_queue = dag.trigger.runs == "each"
        count = sum(len(state.causes) if is_queue else 1 for state in waiting.values())
        partition = "" if first.partition is None else f"{first.partition} after "
        label = first.causes[-1].label
        self._note(dag, f"{count} wait, the first is {partition}{label}: {why}")

    def _note(self, dag: Downstream, text: str) -> None:
        self._waiting.append(f"{dag.name}: {text}")


def _build_run_key(dag: Downstream, due: Due) -> str:
    """Build the key by which Dagster creates one run for these causes, if a tick is repeated after
    a crash."""
    partition = "" if due.partition is None else f" {due.partition}"
    return f"{dag.name} {due.causes[-1].position}{partition}"
