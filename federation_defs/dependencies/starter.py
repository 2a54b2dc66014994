"""Requests the runs that are due: in the order of their events, no more at a time than may run,
once upstreams have the needed partitions, and as `only_if` and `reruns` decide."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.event_log import (
    build_upstream_event,
    fetch_last_materializations,
    fetch_materialized_partitions,
)
from federation_defs.dagster_io.run_tags import Request, find_requested
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
from federation_defs.dependencies.run_lookup import DueCache, Hang, RunLookup
from federation_defs.errors import OnlyIfError
from federation_defs.events import (
    build_dropped_observation,
    build_only_if_events,
    build_start_observation,
)
from federation_defs.naming import build_cause_tag, build_launching_tags
from federation_defs.outcome import join_names
from federation_defs.timing import Timing

_MAX_ONLY_IF_FAILURES = 3  # about one event
_MAX_TAGGED_EVENTS = 20  # PostgreSQL's index of tags takes 2,700 bytes (dagster 1.13)

_Event = dg.AssetObservation | dg.AssetCheckEvaluation


class _Obstacle(NamedTuple):
    """Why a due run does not begin now.

    Attributes:
        is_of_dag: Whether no other run of the DAG begins now either.
    """

    why: str
    is_of_dag: bool = True


def drop_requested(
    instance: dg.DagsterInstance,
    waiting: Iterable[tuple[Downstream, Waiting, Collection[str | None]]],
) -> None:
    """Remove the events that led to runs in a tick whose cursor was not stored. With `when: all`,
    the next event would otherwise lead to another run for them.

    Args:
        waiting: For each DAG, the events that wait to start it, and the partitions to look at.
    """
    by_key = {
        _build_run_key(dag, due): (of_dag, due)
        for dag, of_dag, partitions in waiting
        for due in find_due(dag, {each: of_dag[each] for each in partitions if each in of_dag})
    }
    for key in find_requested(instance, list(by_key)):
        drop_causes(*by_key[key])


class Starter:
    """Requests the runs of one tick.

    Args:
        lacking: What partitions lack, in words, or empty for nothing. Only an event about the
            partition, which is another cause, can change it. Updated here.
        shared, hang: As in `RunLookup`.
        deadline: For starting runs, in seconds of the monotonic clock.
    """

    def __init__(
        self,
        client: AirflowClient,
        instance: dg.DagsterInstance,
        lacking: DueCache,
        shared: DueCache,
        hang: Hang,
        timing: Timing,
        deadline: float,
    ) -> None:
        self._airflow = client.instance
        self._instance = instance
        self._lacking = lacking
        self._timing = timing
        self._deadline = deadline
        self._runs = RunLookup(client, instance, shared, hang, timing, deadline)
        self._requests: list[dg.RunRequest] = []
        self._events: list[_Event] = []
        self._notes: list[str] = []
        self._newly_followed: list[str] = []
        self._is_blocked = False
        self._unanswered = set[str]()  # DAGs whose `only_if` gave no answer in this tick
        self._has_succeeded = cache(self._fetch_has_succeeded)

    @property
    def is_over(self) -> bool:
        """Whether the time for starting runs in this tick is over."""
        return self._timing.find_rest_s(self._deadline) <= 0

    @property
    def is_idle(self) -> bool:
        """Whether this tick requests and reports nothing, and only new events can change that."""
        return not (self._requests or self._events or self._is_blocked)

    def start(self, dag: Downstream, waiting: Waiting) -> None:
        """Request a DAG's due runs that may begin now, and remove their events from `waiting`."""
        lacking: list[str] = []
        first_blocked: tuple[Due, str] | None = None  # that waits though it lacks nothing
        has_begun = False
        blocked = set[str | None]()  # partitions of which nothing else may begin, to keep the order
        for due in find_due(dag, waiting):
            if due.partition in blocked:
                continue
            if self.is_over and not self._lacking.get(dag, due):
                why = "this tick has no time left; the next one tries again"
                first_blocked = first_blocked or (due, why)
                break
            if lacks := self._find_lacking(dag, due):
                lacking.append(f"{due.partition} {lacks}")
            elif obstacle := self._start(dag, waiting, due):
                first_blocked = first_blocked or (due, obstacle.why)
                blocked.add(due.partition)
                if obstacle.is_of_dag:
                    break
            else:
                has_begun = True
                drop_causes(waiting, due)
                self._lacking.keep(dag, due, None)
        if first_blocked:
            self._note_blocked(dag, waiting, *first_blocked)
        self._is_blocked |= bool(first_blocked or lacking)
        if lacking:
            self._note(dag, join_names(lacking))
        elif not first_blocked and not has_begun:
            self._note_missing_upstreams(dag, waiting)

    def _start(self, dag: Downstream, waiting: Waiting, due: Due) -> _Obstacle | None:
        """Request a due run, or pass it over. Return why if neither is possible now."""
        earlier = self._runs.find_earlier_run(dag, due)
        if earlier is not None and dag.trigger.reruns == "ignore":
            return None
        if (why := self._runs.find_obstacle(dag, earlier)) is not None:
            return _Obstacle(why)
        if due.partition is not None and due.partition in self._runs.find_active_partitions(dag):
            return _Obstacle("a run of this partition is active", is_of_dag=False)
        if (shared := self._runs.find_shared_run(dag, due)) is not None:
            runs_both = f"Dagster run {shared.run_id} runs both DAGs"
            return None if shared.is_finished else _Obstacle(runs_both, is_of_dag=False)
        if (answer := self._decide(dag, waiting, due)) is None:
            return _Obstacle("`only_if` has not answered yet")
        if isinstance(answer, Run):
            self._request(dag, due, answer.conf, earlier)
        return None

    def report_new_upstreams(self, dag: Downstream, followed: Collection[str]) -> None:
        """Report, on the DAG's asset and in the tick, which dependencies count from now on.

        Args:
            followed: The fingerprints of the upstreams that count already.
        """
        names = [
            f"{edge.name} ({edge.state})"
            for edge, _ in dag.edges
            if dag.fingerprints[edge.key] not in followed
        ]
        if names:
            self._events.append(build_start_observation(dag.instance, dag.dag_id, names))
            self._newly_followed.append(dag.dag_id)

    def report_dropped(self, dag_id: str, events: Sequence[str]) -> None:
        """Report, on a DAG's asset and in the tick, the events that no longer wait to start it.

        Args:
            events: The dependency of each, in words.
        """
        observation = build_dropped_observation(self._airflow, dag_id, events)
        self._events.append(observation)
        self._notes.append(f"{self._airflow}/{dag_id}: {observation.description}")

    def report_unread(self) -> None:
        """Note in the tick that not all events were read yet."""
        self._notes.append(
            "This tick had no time to read all events. The next one continues, and starts no run "
            "before all are read."
        )

    def build_result(self, cursor: str) -> dg.SensorResult:
        """Build what the sensor returns."""
        notes = self._notes or ["Nothing has happened upstream that starts a DAG."]
        if self._newly_followed:
            new = f"New dependencies of {join_names(self._newly_followed)} count from now on."
            notes = [new, *self._notes]
        return dg.SensorResult(
            run_requests=self._requests,
            asset_events=self._events,
            skip_reason=None if self._requests else "; ".join(notes),
            cursor=cursor,
        )

    def _request(
        self, dag: Downstream, due: Due, conf: Mapping[str, Any] | None, clears: str | None
    ) -> None:
        airflow, last = dag.instance, due.causes[-1]
        events = [(each.edge.key, each.position) for each in due.causes[-_MAX_TAGGED_EVENTS:]]
        request = Request(events, conf, clears, self._find_logical_date(dag, last))
        self._requests.append(
            dg.RunRequest(
                run_key=_build_run_key(dag, due),
                asset_selection=[dag.key],
                partition_key=due.partition,
                tags={
                    **build_launching_tags(airflow),
                    **request.build_tags(airflow, dag.dag_id),
                    build_cause_tag(airflow, dag.dag_id): last.label,
                },
            )
        )
        # The id of a new run is not known yet.
        self._runs.add_requested(dag, due, clears or _build_run_key(dag, due))

    def _find_logical_date(self, dag: Downstream, cause: Cause) -> datetime | None:
        """Find the upstream run's logical date, if the DAG has `trigger.logical_date: upstream`."""
        if dag.trigger.logical_date != "upstream":
            return None
        event = self._runs.fetch_event(cause)
        return event and build_upstream_event(event, "", "").logical_date

    # What partitions lack

    def _find_lacking(self, dag: Downstream, due: Due) -> str | None:
        """Find what a partition lacks, as it follows its name; None or empty if nothing."""
        if due.partition is None:
            return None
        if known := self._lacking.get(dag, due):
            return known
        if not dag.mappings[0].downstream.has_partition_key(due.partition):
            return "has not begun"
        if dag.trigger.runs == "each":
            return None
        for edge, mapping in dag.edges:
            is_needed = edge.state == "success" and mapping and mapping.upstream is None
            if is_needed and not self._has_succeeded(edge.key):
                return f"waits for the first success of {edge.name}"
        if known is None:
            known = self._fetch_lacking(dag, due.partition)
            self._lacking.keep(dag, due, known)
        return known

    def _fetch_lacking(self, dag: Downstream, partition: str) -> str:
        for edge, mapping in dag.edges:
            if edge.state == "success" and mapping is not None:
                needed, count = mapping.find_needed(partition)
                found = fetch_materialized_partitions(self._instance, edge.key, needed)
                if len(found) < count:
                    return f"has {len(found)} of {count} partitions of {edge.name}"
        return ""

    def _fetch_has_succeeded(self, key: dg.AssetKey) -> bool:
        return bool(fetch_last_materializations(self._instance, [key]))

    # What a function of the user decides

    def _decide(self, dag: Downstream, waiting: Waiting, due: Due) -> Run | Skip | None:
        """Ask `only_if` about the newest event; None if it gave no answer. Then the next tick
        retries, and not this one, because the function may take all its time."""
        if (function := dag.trigger.only_if) is None:
            return Run()
        if self.is_over or dag.dag_id in self._unanswered:
            return None
        cause = due.causes[-1]
        event = self._runs.fetch_event(cause)
        if event is None:
            return Skip("the event was deleted")
        problem, pending = None, waiting[due.partition]
        try:
            answer = ask(function, build_upstream_event(event, cause.edge.name, dag.name))
            said = f"`only_if` says: {answer.reason if isinstance(answer, Skip) else 'run'}"
        except OnlyIfError as error:
            said = problem = str(error)
            pending.failures += 1
            self._unanswered.add(dag.dag_id)
            answer = Skip(said) if pending.failures >= _MAX_ONLY_IF_FAILURES else None
        self._events += build_only_if_events(
            dag.key,
            cause.edge.name,
            cause.run_id,
            said,
            is_error=problem is not None,
            is_final=answer is not None,
        )
        return answer

    # Notes about events that wait

    def _note_missing_upstreams(self, dag: Downstream, waiting: Waiting) -> None:
        """Note which dependencies a DAG still waits for, if it has events of others since its last
        run."""
        notes: list[str] = []
        for partition, pending in waiting.items():
            # By identity: to compare all with each other would take seconds if there are many.
            counted = {id(cause.edge) for cause in pending.causes.values()}
            missing = [
                f"{edge.name} ({edge.state})" for edge, _ in dag.edges if id(edge) not in counted
            ]
            which = "" if partition is None else f"{partition} "
            notes.append(f"{which}waits for {join_names(missing)}")
        if notes:
            self._note(dag, join_names(notes))

    def _note_blocked(self, dag: Downstream, waiting: Waiting, first: Due, why: str) -> None:
        is_queue = dag.trigger.runs == "each"
        count = sum(len(each.causes) if is_queue else 1 for each in waiting.values())
        partition = "" if first.partition is None else f"{first.partition} after "
        label = first.causes[-1].label.rstrip()
        self._note(dag, f"{count} wait, the first is {partition}{label}: {why}")

    def _note(self, dag: Downstream, text: str) -> None:
        self._notes.append(f"{dag.name}: {text}")


def _build_run_key(dag: Downstream, due: Due) -> str:
    """Build the run key. By it, Dagster creates one run for these causes, even if a tick is
    repeated after a crash."""
    partition = "" if due.partition is None else f" {due.partition}"
    return f"{dag.name} {due.causes[-1].position}{partition}"
