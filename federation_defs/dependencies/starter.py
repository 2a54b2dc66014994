"""Requests runs of DAGs for the events that led to them: in order, not more than may run at a time,
when upstreams have the partitions that are needed, and as `only_if` and `reruns` say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import chain
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
    find_due,
    settle,
)
from federation_defs.dependencies.only_if import ask
from federation_defs.dependencies.record import Run, Skip
from federation_defs.dependencies.runs import Place, Runs
from federation_defs.errors import DecisionError
from federation_defs.events import build_decision_events, build_start_observation
from federation_defs.naming import build_cause_tag, build_monitor_tags
from federation_defs.outcome import join_names
from federation_defs.redaction import has_secrets
from federation_defs.timing import Timing

_MAX_FAILURES = 3  # of `only_if`, about one event
_START_S = 20.0  # for all that a tick starts; Dagster ends a tick after 60 s
# PostgreSQL's index of tags takes 2,700 bytes (dagster 1.13).
_MAX_CONF = 1000
_MAX_REFERENCES = 20

_Event = dg.AssetObservation | dg.AssetCheckEvaluation


@dataclass(frozen=True)
class Memory:
    """What is known of partitions that wait, and the causes for which that was found. It only saves
    queries.

    Attributes:
        lacking: What partitions lack, in words. Only an event about the partition, which is another
            cause, can change it.
        joint: The Dagster runs that materialized upstreams and are to run the DAG as well.
    """

    lacking: dict[Place, tuple[tuple[Cause, ...], str]] = field(default_factory=dict)
    joint: dict[Place, tuple[tuple[Cause, ...], str]] = field(default_factory=dict)


class Starter:
    """Requests the runs of one tick.

    Args:
        memory: Of earlier ticks. It is updated.
    """

    def __init__(
        self,
        client: AirflowClient,
        instance: dg.DagsterInstance,
        memory: Memory,
        timing: Timing,
    ) -> None:
        self._instance = instance
        self._memory = memory
        self._runs = Runs(client, instance, memory.joint, timing)
        self._timing = timing
        self._until = timing.monotonic() + _START_S
        self._requests: list[dg.RunRequest] = []
        self._events: list[_Event] = []
        self._waiting: list[str] = []
        self._joined: list[str] = []
        self._has_succeeded = cache(self._fetch_has_succeeded)

    def start(self, dag: Downstream, waiting: Waiting) -> None:
        """Request as many of a DAG's due runs as may begin now, and remove them from what waits."""
        lacking: list[str] = []
        ready = self._iterate_ready(dag, find_due(dag, waiting), lacking)
        if (first := next(ready, None)) is not None:
            self._start_ready(dag, waiting, chain([first], ready))
        if lacking:
            self._note(dag, join_names(lacking))
        elif first is None:
            self._note_latched(dag, waiting)

    def _start_ready(self, dag: Downstream, waiting: Waiting, ready: Iterable[Due]) -> None:
        problem = self._runs.find_problem(dag.dag_id)
        active = self._runs.find_active(dag)
        if isinstance(active, str):
            problem, active = active, {}
        for each in ready:
            if self._timing.monotonic() > self._until:
                self._wait(dag, waiting, each, "this tick has taken long enough")
                break
            if has_requested(self._instance, _build_run_key(dag, each)):
                settle(waiting, each)  # the tick's cursor was not stored
                continue
            led = self._runs.find_led(dag, each)
            if led is not None and dag.trigger.reruns == "ignore":
                settle(waiting, each)
                continue
            if (why := self._find_obstacle(dag, active, led) or problem) is not None:
                self._wait(dag, waiting, each, why)
                break
            if each.partition is not None and each.partition in active.values():
                self._wait(dag, waiting, each, "a run of this partition goes on")
                continue
            joint = self._runs.find_joint_run(dag, each)
            if joint is not None and joint.is_finished:
                settle(waiting, each)
                continue
            if joint is not None:
                self._wait(dag, waiting, each, f"Dagster run {joint.run_id} runs both")
                continue
            answer = self._decide(dag, waiting, each)
            if answer is None:
                self._wait(dag, waiting, each, "`only_if` has not answered yet")
                break
            if isinstance(answer, Run):
                self._request(dag, each, answer.conf, led)
                begun = led or _build_run_key(dag, each)  # its run id is not known yet
                active[begun] = each.partition
                self._runs.add(dag, each, begun)
            settle(waiting, each)

    def _find_obstacle(
        self, dag: Downstream, active: Mapping[str, str | None], led: str | None
    ) -> str | None:
        """Find which run a DAG has to wait for before another one begins.

        Args:
            led: The run that is to be cleared.
        """
        is_bounded = dag.trigger.runs == "each" or dag.declaration.partitions is not None
        if len(active) >= (dag.trigger.at_once if is_bounded else 1):
            return f"runs of it go on: {join_names(sorted(active))}"
        if led is not None and self._runs.goes_on(dag, led, active):
            return f"the run to clear goes on: {led}"
        return None

    def settle_requested(
        self, dag: Downstream, waiting: Waiting, partitions: Collection[str | None]
    ) -> None:
        """Remove what was requested of some partitions from what waits. The tick that did so may
        have failed before its cursor was stored. With `when: all`, the next event would otherwise
        lead to another run for the same causes."""
        known = {each: waiting[each] for each in partitions if each in waiting}
        for due in find_due(dag, known):
            if has_requested(self._instance, _build_run_key(dag, due)):
                settle(waiting, due)

    def note_dropped(self, dag: Downstream, partitions: Sequence[str | None]) -> None:
        """Note which partitions waited that the DAG does not have any more."""
        if names := [partition for partition in partitions if partition is not None]:
            self._note(dag, f"dropped, as it has no such partitions now: {join_names(names)}")

    def tell_joined(self, dag: Downstream, upstreams: Collection[dg.AssetKey]) -> None:
        """Tell, on the DAG's asset and in the tick, which dependencies count from now on."""
        names = [f"{edge.name} ({edge.state})" for edge, _ in dag.edges if edge.key in upstreams]
        self._events.append(build_start_observation(dag.instance, dag.dag_id, names))
        self._joined.append(dag.dag_id)

    # What partitions lack

    def _iterate_ready(
        self, dag: Downstream, due: Iterable[Due], lacking: list[str]
    ) -> Iterator[Due]:
        """Iterate over the runs that lack no partition.

        Args:
            lacking: What the others lack is added.
        """
        for each in due:
            if (lacks := self._find_lacking(dag, each)) is None:
                yield each
            else:
                lacking.append(f"{each.partition} {lacks}")

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
        place, memory = (dag.dag_id, due.partition), self._memory.lacking
        causes, lacks = memory.get(place, ((), None))
        if causes != due.causes or lacks is None:
            lacks = self._fetch_lacking(dag, due.partition)
            if lacks is None:
                memory.pop(place, None)
            else:
                memory[place] = due.causes, lacks
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
        if self._joined:
            reason = f"What happens from now on counts for {join_names(self._joined)}."
        is_told = self._requests or (self._events and not self._joined)
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
        try:
            record = build_upstream_event(event, cause.edge.name, dag.name)
            answer = ask(function, record)
            check_conf(function, record.upstream, record.downstream, answer)
        except DecisionError as error:
            state = waiting[due.partition]
            failures = state.failures + 1
            waiting[due.partition] = replace(state, failures=failures)
            is_final = failures >= _MAX_FAILURES
            self._report(dag, cause, str(error), is_error=True, is_final=is_final)
            return Skip(str(error)) if is_final else None
        said = answer.reason if isinstance(answer, Skip) else "run"
        self._report(dag, cause, f"`only_if` says: {said}", is_error=False, is_final=True)
        return answer

    def _report(
        self, dag: Downstream, cause: Cause, answer: str, *, is_error: bool, is_final: bool
    ) -> None:
        self._events += build_decision_events(
            dag.key, cause.edge.name, cause.run_id, answer, is_error=is_error, is_final=is_final
        )

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


def check_conf(function: str, upstream: str, downstream: str, answer: Run | Skip) -> None:
    """Refuse a conf that can't be stored in a tag of the Dagster run: too long, or with what looks
    like a secret.

    Raises:
        DecisionError: It does.
    """
    why = None
    if isinstance(answer, Run) and answer.conf and has_secrets(answer.conf):
        why = "a conf that seems to hold a secret, and that Dagster would show; keep secrets in an "
        why += "Airflow connection"
    elif isinstance(answer, Run) and (size := len(json.dumps(answer.conf))) > _MAX_CONF:
        why = f"a conf of {size} characters, and Dagster keeps it in a tag, which has {_MAX_CONF} "
        why += "at most; pass the name of what it is about"
    if why is not None:
        raise DecisionError(
            function, upstream=upstream, downstream=downstream, why=f"answered with {why}"
        )
