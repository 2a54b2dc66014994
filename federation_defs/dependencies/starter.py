"""Requests runs of DAGs for the events that led to them: in order, not more than may run at a time,
when upstreams have the partitions that are needed, and as `only_if` and `reruns` say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import chain

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.event_log import (
    build_upstream_event,
    fetch_event,
    fetch_last_materializations,
    fetch_materialized_partitions,
)
from federation_defs.dagster_io.run_tags import (
    Request,
    has_requested,
)
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies.decider import (
    Cause,
    Due,
    Waiting,
    find_due,
    find_latched,
    settle,
)
from federation_defs.dependencies.only_if import ask
from federation_defs.dependencies.record import Run, Skip
from federation_defs.dependencies.runs import Place, Runs
from federation_defs.errors import DecisionError
from federation_defs.events import build_decision_events
from federation_defs.naming import (
    build_asset_key,
    build_cause_tag,
    build_monitor_tags,
)
from federation_defs.outcome import join_names
from federation_defs.partition_mapping import PartitionMapping
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
        self._client = client
        self._instance = instance
        self._memory = memory
        self._runs = Runs(client, instance, memory.joint, timing)
        self._timing = timing
        self._until = timing.monotonic() + _START_S
        self._requests: list[dg.RunRequest] = []
        self._events: list[_Event] = []
        self._waiting: list[str] = []
        self._has_succeeded = cache(self._fetch_has_succeeded)

    def start(
        self,
        dag_id: str,
        dag: DagDeclaration,
        mappings: Sequence[PartitionMapping],
        waiting: Waiting,
    ) -> None:
        """Request as many of a DAG's due runs as may begin now, and remove them from what waits."""
        due, lacking = find_due(dag, waiting), list[str]()
        ready = self._iterate_ready(dag_id, dag, mappings, due, lacking)
        if (first := next(ready, None)) is not None:
            self._start_ready(dag_id, dag, waiting, chain([first], ready))
        if lacking:
            self._note(dag_id, join_names(lacking))
        elif first is None:
            self._note_latched(dag_id, dag, waiting)

    def _start_ready(
        self, dag_id: str, dag: DagDeclaration, waiting: Waiting, ready: Iterable[Due]
    ) -> None:
        is_bounded = dag.trigger.runs == "each" or dag.partitions is not None
        most = dag.trigger.at_once if is_bounded else 1
        problem = self._runs.find_problem(dag_id)
        active = self._runs.find_active(dag_id, dag)
        for each in ready:
            if self._timing.monotonic() > self._until:
                self._wait(dag_id, waiting, each, "this tick has taken long enough")
                break
            if has_requested(self._instance, self._build_run_key(dag_id, each)):
                settle(waiting, each)  # the tick's cursor was not stored
                continue
            led = self._runs.find_led(dag_id, dag, each)
            if led is not None and dag.trigger.reruns == "ignore":
                settle(waiting, each)
                continue
            why = problem
            if isinstance(active, str):
                why = active
            elif len(active) >= most:
                why = f"runs of it go on: {join_names(sorted(active))}"
            elif led is not None and self._runs.goes_on(dag_id, led, active):
                why = f"the run to clear goes on: {led}"
            if why is not None or isinstance(active, str):
                self._wait(dag_id, waiting, each, why or "")
                break
            if each.partition is not None and each.partition in active.values():
                self._wait(dag_id, waiting, each, "a run of this partition goes on")
                continue
            joint = self._runs.find_joint_run(dag_id, each)
            if joint is not None and joint.is_finished:
                settle(waiting, each)
                continue
            if joint is not None:
                self._wait(dag_id, waiting, each, f"Dagster run {joint.run_id} runs both")
                continue
            answer = self._decide(dag_id, dag, waiting, each)
            if answer is None:
                self._wait(dag_id, waiting, each, "`only_if` has not answered yet")
                break
            if isinstance(answer, Run):
                date = self._find_logical_date(dag, each.causes[-1])
                request = Request(_refer(each.causes), answer.conf, led, date)
                self._request(dag_id, each, request)
                begun = led or self._build_run_key(dag_id, each)  # its run id is not known yet
                active[begun] = each.partition
                self._runs.add(dag_id, each, begun)
            settle(waiting, each)

    def settle_requested(
        self,
        dag_id: str,
        dag: DagDeclaration,
        waiting: Waiting,
        partitions: Collection[str | None],
    ) -> None:
        """Remove what was requested of some partitions from what waits. The tick that did so may
        have failed before its cursor was stored. With `when: all`, the next event would otherwise
        lead to another run for the same causes."""
        known = {each: waiting[each] for each in partitions if each in waiting}
        for due in find_due(dag, known):
            if has_requested(self._instance, self._build_run_key(dag_id, due)):
                settle(waiting, due)

    def note_dropped(self, dag_id: str, partitions: Sequence[str | None]) -> None:
        """Note which partitions waited that the DAG does not have any more."""
        if names := [partition for partition in partitions if partition is not None]:
            self._note(dag_id, f"dropped, as it has no such partitions now: {join_names(names)}")

    # What partitions lack

    def _iterate_ready(
        self,
        dag_id: str,
        dag: DagDeclaration,
        mappings: Sequence[PartitionMapping],
        due: Sequence[Due],
        lacking: list[str],
    ) -> Iterator[Due]:
        """Iterate over the runs that lack no partition.

        Args:
            lacking: What the others lack is added.
        """
        for each in due:
            if (lacks := self._find_lacking(dag_id, dag, mappings, each)) is None:
                yield each
            else:
                lacking.append(f"{each.partition} {lacks}")

    def _find_lacking(
        self,
        dag_id: str,
        dag: DagDeclaration,
        mappings: Sequence[PartitionMapping],
        due: Due,
    ) -> str | None:
        """Find what a partition lacks, as the end of a sentence; None if it lacks nothing."""
        if due.partition is None:
            return None
        if not mappings[0].downstream.has_partition_key(due.partition):
            return "has not begun"
        if dag.trigger.runs == "each":
            return None
        for edge, mapping in zip(dag.depends_on, mappings, strict=True):
            is_needed = edge.state == "success" and mapping.upstream is None
            if is_needed and not self._has_succeeded(edge.key):
                return f"waits for the first success of {edge.name}"
        place, memory = (dag_id, due.partition), self._memory.lacking
        causes, lacks = memory.get(place, ((), None))
        if causes != due.causes or lacks is None:
            lacks = self._fetch_lacking(dag, mappings, due.partition)
            if lacks is None:
                memory.pop(place, None)
            else:
                memory[place] = due.causes, lacks
        return lacks

    def _fetch_lacking(
        self, dag: DagDeclaration, mappings: Sequence[PartitionMapping], partition: str
    ) -> str | None:
        for edge, mapping in zip(dag.depends_on, mappings, strict=True):
            if edge.state != "success":
                continue
            needed, count = mapping.find_needed(partition)
            if needed:
                found = fetch_materialized_partitions(self._instance, edge.key, needed)
                if len(found) < count:
                    return f"has {len(found)} of {count} partitions of {edge.name}"
        return None

    def _fetch_has_succeeded(self, key: dg.AssetKey) -> bool:
        return bool(fetch_last_materializations(self._instance, [key]))

    def build_result(self, cursor: str) -> dg.SensorResult:
        """Build what the sensor returns."""
        summary = "; ".join(self._waiting) or "Nothing has happened upstream that starts a DAG."
        return dg.SensorResult(
            run_requests=self._requests,
            asset_events=self._events,
            skip_reason=None if self._requests or self._events else summary,
            cursor=cursor,
        )

    def _request(self, dag_id: str, due: Due, request: Request) -> None:
        airflow, last = self._client.instance, due.causes[-1]
        key = build_asset_key(airflow, dag_id)
        self._requests.append(
            dg.RunRequest(
                run_key=self._build_run_key(dag_id, due),
                asset_selection=[key],
                partition_key=due.partition,
                tags={
                    **build_monitor_tags(airflow),
                    **request.build_tags(airflow, dag_id),
                    build_cause_tag(airflow, dag_id): last.label,
                },
            )
        )

    def _build_run_key(self, dag_id: str, due: Due) -> str:
        """Build the key by which Dagster creates one run for these causes, if a tick is repeated
        after a crash."""
        partition = "" if due.partition is None else f" {due.partition}"
        return f"{self._client.instance}/{dag_id} {due.causes[-1].position}{partition}"

    def _find_logical_date(self, dag: DagDeclaration, cause: Cause) -> datetime | None:
        """Find the logical date of the upstream run, if the DAG's run is to have it."""
        if dag.trigger.logical_date != "upstream":
            return None
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        return event and build_upstream_event(event, "", "").logical_date

    # What a function of the user decides

    def _decide(
        self, dag_id: str, dag: DagDeclaration, waiting: Waiting, due: Due
    ) -> Run | Skip | None:
        """Ask `only_if` about the newest event. No answer: it is asked again at the next tick."""
        if dag.trigger.only_if is None:
            return Run()
        if self._timing.monotonic() > self._until:
            return None
        airflow, cause = self._client.instance, due.causes[-1]
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        if event is None:
            return Skip("the event was deleted")
        try:
            record = build_upstream_event(event, cause.edge.name, f"{airflow}/{dag_id}")
            answer = ask(dag.trigger.only_if, record)
            check_conf(dag.trigger.only_if, record.upstream, record.downstream, answer)
        except DecisionError as error:
            state = waiting[due.partition]
            failures = state.failures + 1
            waiting[due.partition] = replace(state, failures=failures)
            is_final = failures >= _MAX_FAILURES
            self._report(dag_id, cause, str(error), is_error=True, is_final=is_final)
            return Skip(str(error)) if is_final else None
        said = answer.reason if isinstance(answer, Skip) else "run"
        self._report(dag_id, cause, f"`only_if` says: {said}", is_error=False, is_final=True)
        return answer

    def _report(
        self, dag_id: str, cause: Cause, answer: str, *, is_error: bool, is_final: bool
    ) -> None:
        key = build_asset_key(self._client.instance, dag_id)
        self._events += build_decision_events(
            key, cause.edge.name, cause.run_id, answer, is_error=is_error, is_final=is_final
        )

    # What waits

    def _note_latched(self, dag_id: str, dag: DagDeclaration, waiting: Waiting) -> None:
        """Note which dependencies a DAG still waits for, if others have counted since its last
        run."""
        notes: list[str] = []
        for partition, state in waiting.items():
            edges = [cause.edge for cause in find_latched(dag, state)]
            missing = [
                f"{edge.name} ({edge.state})" for edge in dag.depends_on if edge not in edges
            ]
            which = "" if partition is None else f"{partition} "
            notes.append(f"{which}waits for {join_names(missing)}")
        if notes:
            self._note(dag_id, join_names(notes))

    def _wait(self, dag_id: str, waiting: Waiting, first: Due, why: str) -> None:
        count = sum(len(state.queue) or 1 for state in waiting.values())
        partition = "" if first.partition is None else f"{first.partition} after "
        label = first.causes[-1].label
        self._note(dag_id, f"{count} wait, the first is {partition}{label}: {why}")

    def _note(self, dag_id: str, text: str) -> None:
        self._waiting.append(f"{self._client.instance}/{dag_id}: {text}")


def _refer(causes: Sequence[Cause]) -> list[tuple[dg.AssetKey, int]]:
    """Return the events to name in a tag: the newest ones, the newest last."""
    return [(cause.edge.key, cause.position) for cause in causes[-_MAX_REFERENCES:]]


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
