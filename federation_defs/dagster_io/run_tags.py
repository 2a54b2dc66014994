"""Run tags: what a Dagster run that launches DAG runs leaves for other processes to read.

Tags outlive the worker. They are the only state that executing keeps in Dagster. `<instance>` is
the Airflow instance's name; `naming.py` builds the keys.

`federation/waits_for.<instance>`
    "true". Written by `Heartbeats` when a step begins. Read by observation, which finds by it
    runs whose worker died and runs that took over DAG runs of others, and by a step, which counts
    how many others may be waiting for a free place under `limits.max_active_runs`.
`federation/alive_at.<instance>`
    The Dagster run's id, seconds since 1970 by the worker's clock, and "waits" while the step waits
    for other attempts. Written by `Heartbeats` every few seconds. `HeartbeatWatch` reads only
    whether it changes, so that clocks don't matter, and a text that a person writes is as good as
    another.
`federation/runs_again.<instance>`
    JSON, `{target name: [run id, mark]}`, for DAG runs that this Dagster run did not trigger or is
    about to clear. The mark is "adopted" for a run that is taken as it is, else the state and end
    date of the run before it was cleared. Written by `CurrentRun` before it acts. Read by
    re-executions, which tell by the mark whether the clear was made, and by observation, which
    leaves these runs to their Dagster run.
`federation/no_longer_waits_for.<instance>`
    JSON, `[[DAG id, run id], ...]`, for DAG runs that the Dagster run won't report. Written by
    `CurrentRun.detach`. Read by observation, which reports them instead.
`federation/dag_run.<instance>.<DAG id>`
    The run id, and " and <n> more" for several partitions. Written by `CurrentRun` when a DAG run
    was launched. For people, who search the list of runs by it. Read by a step, which finds out by
    it whether an earlier Dagster run has launched the DAG.

`federation/request.<instance>.<DAG id>`
    JSON, `{"events": [[asset path, position], ...], "conf": {...}, "clears": run id, "date": ISO
    8601}`: the events of the event log for which the DAG is started, the newest last; the conf that
    its `only_if` gave; the DAG run to clear in place of a new one; the logical date. All but the
    events may be null or left out. Written by the event sensor. Read by the step.
`federation/after.<instance>.<DAG id>`
    The upstream, its state and the run id of the newest of these events. Written by the event
    sensor, which finds by it what an upstream run has led to. For people, too.

JSON of more than 1,000 characters is stored as "zlib:" and the base64 of its zlib compression:
MySQL keeps at most 64 kB of all tags of a run.

A re-execution inherits the tags of the run before it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from threading import Lock
from typing import Any

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.naming import (
    build_cause_tag,
    build_dag_run_tag,
    build_detached_tag,
    build_monitor_tags,
    build_plan_tag,
    build_request_tag,
    build_run_id,
    parse_root_run_id,
)

_ADOPTED = "adopted"
_WRITES = 3
_COMPRESSED = "zlib:"
_MAX_PLAIN_CHARACTERS = 1000
_UNREADABLE = (
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
    zlib.error,
)  # edited by hand
_ATTEMPTS = 10  # at one cause, of which the last ones are looked at
_ROOT_TAG = "dagster/root_run_id"  # of a re-execution
_PARTITION_TAG = "dagster/partition"
_RUN_KEY_TAG = "dagster/run_key"
_NOT_ENDED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
_STARTED = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)

_lock = Lock()


def add_run_tags(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a Dagster run, one thread of this process at a time.

    Dagster reads all tags of the run and writes them back with the new ones (1.13,
    `SqlRunStorage.add_run_tags`). Two threads that did so at once would lose one's tags.
    """
    with _lock:
        instance.add_run_tags(run_id, tags)


def is_automation(run: dg.DagsterRun) -> bool:
    """Whether an automation condition requested the run, and no person did."""
    return "dagster/from_automation_condition" in run.tags


def fetch_monitoring_runs(
    instance: dg.DagsterInstance, airflow: str, limit: int | None = None
) -> Sequence[dg.RunRecord]:
    """Fetch the started Dagster runs that launch DAG runs of an Airflow instance."""
    monitoring = dg.RunsFilter(statuses=_STARTED, tags=build_monitor_tags(airflow))
    return instance.get_run_records(monitoring, limit=limit)


def find_owners(
    instance: dg.DagsterInstance,
    airflow: str,
    keys: Iterable[RunKey],
    is_alive: Callable[[dg.DagsterRun], bool],
) -> dict[RunKey, list[str]]:
    """Find the ids of the living Dagster runs that triggered or adopted each DAG run.

    The one that triggered it comes first, others in the order of their ids. Without those that have
    detached it.
    """
    found: dict[RunKey, list[tuple[bool, str]]] = {key: [] for key in keys}
    roots = {key: parse_root_run_id(key[1]) for key in found}
    for record in fetch_monitoring_runs(instance, airflow) if found else []:
        owner = record.dagster_run
        if not is_alive(owner):
            continue
        plans, root = _read_plans(owner, airflow), owner.tags.get(_ROOT_TAG, owner.run_id)
        planned = {(target.split(" [")[0], run_id) for target, (run_id, _) in plans.items()}
        detached = _read_detached(owner, airflow)
        for key in found:
            if (roots[key] == root or key in planned) and key not in detached:
                found[key].append((roots[key] != root, owner.run_id))
    return {key: [run_id for _, run_id in sorted(owners)] for key, owners in found.items()}


def _read_plans(run: dg.DagsterRun | None, airflow: str) -> dict[str, tuple[str, str]]:
    """Return run id and mark by target name."""
    try:
        plans = _unpack(run.tags.get(build_plan_tag(airflow), "{}")) if run else {}
        return {name: (str(run_id), str(mark)) for name, (run_id, mark) in plans.items()}
    except _UNREADABLE:
        return {}


def _read_detached(run: dg.DagsterRun, airflow: str) -> set[RunKey]:
    try:
        detached = _unpack(run.tags.get(build_detached_tag(airflow), "[]"))
        return {(str(dag_id), str(run_id)) for dag_id, run_id in detached}
    except _UNREADABLE:
        return set()


def _pack(value: Any) -> str:
    text = json.dumps(value)
    if len(text) <= _MAX_PLAIN_CHARACTERS:
        return text
    return _COMPRESSED + b64encode(zlib.compress(text.encode())).decode()


def _unpack(text: str) -> Any:
    if text.startswith(_COMPRESSED):
        text = zlib.decompress(b64decode(text.removeprefix(_COMPRESSED))).decode()
    return json.loads(text)


@dataclass(frozen=True)
class Target:
    """What a step is to run: a DAG, or one partition of it."""

    dag_id: str
    partition: str | None = None

    @property
    def name(self) -> str:
        return self.dag_id if self.partition is None else f"{self.dag_id} [{self.partition}]"


@dataclass(frozen=True)
class Request:
    """What the event sensor asks of a Dagster run, about one DAG.

    Attributes:
        events: Asset key and position in the event log of each event that led to it, the newest
            last.
        conf: That `only_if` gave in place of the declared one.
        clears: The run id of a DAG run to clear in place of a new one.
        logical_date: That of the upstream run, if the DAG run is to have it.
    """

    events: Sequence[tuple[dg.AssetKey, int]]
    conf: Mapping[str, Any] | None = None
    clears: str | None = None
    logical_date: datetime | None = None

    def build_tags(self, airflow: str, dag_id: str) -> dict[str, str]:
        events = [[key.path, position] for key, position in self.events]
        date = self.logical_date and self.logical_date.isoformat()
        values = {"events": events, "conf": self.conf, "clears": self.clears, "date": date}
        return {build_request_tag(airflow, dag_id): _pack(values)}


def read_request(run: dg.DagsterRun | None, airflow: str, dag_id: str) -> Request | None:
    """Return what the event sensor asked of a Dagster run; None if another requested it."""
    try:
        values = _unpack(run.tags[build_request_tag(airflow, dag_id)]) if run else {}
        events = [(dg.AssetKey(path), int(position)) for path, position in values["events"]]
        date = values.get("date") and datetime.fromisoformat(values["date"])
        return Request(events, values.get("conf"), values.get("clears"), date)
    except _UNREADABLE:
        return None


def fetch_active_requests(instance: dg.DagsterInstance, airflow: str) -> list[dg.DagsterRun]:
    """Fetch the Dagster runs that launch DAG runs of an Airflow, and that have not ended."""
    active = dg.RunsFilter(statuses=_NOT_ENDED, tags=build_monitor_tags(airflow))
    return [record.dagster_run for record in instance.get_run_records(active)]


def get_partition(run: dg.DagsterRun) -> str | None:
    """Return the partition of a run; None if it has none, or several."""
    return run.tags.get(_PARTITION_TAG)


def find_run_after(
    instance: dg.DagsterInstance, airflow: str, dag_id: str, cause: str, partition: str | None
) -> dg.DagsterRun | None:
    """Find the last Dagster run that was requested for a cause, and that has launched the DAG, or
    this partition of it, or has not ended."""
    tags = {build_cause_tag(airflow, dag_id): cause}
    if partition is not None:
        tags[_PARTITION_TAG] = partition
    filters = dg.RunsFilter(tags=tags)
    runs = [record.dagster_run for record in instance.get_run_records(filters, limit=_ATTEMPTS)]
    launched = build_dag_run_tag(airflow, dag_id)
    led = (run for run in runs if launched in run.tags or run.status in _NOT_ENDED)
    return next(led, None)


def has_requested(instance: dg.DagsterInstance, run_key: str) -> bool:
    """Whether Dagster has created the run that a sensor requested with this key."""
    filters = dg.RunsFilter(tags={_RUN_KEY_TAG: run_key})
    return bool(instance.get_run_records(filters, limit=1))


def is_only_request(instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str) -> bool:
    """Whether the event sensor of an Airflow instance requested a run, or an attempt before it, and
    that of no other code location has requested the same."""
    key = run.tags.get(_RUN_KEY_TAG)
    if key is None or not any(tag.startswith(build_request_tag(airflow, "")) for tag in run.tags):
        return False
    records = instance.get_run_records(dg.RunsFilter(tags={_RUN_KEY_TAG: key}))
    roots = {record.dagster_run.root_run_id or record.dagster_run.run_id for record in records}
    return roots <= {run.root_run_id or run.run_id}


class CurrentRun:
    """The Dagster run that executes this step: a first attempt, or a re-execution. Thread-safe.

    Args:
        airflow: The Airflow instance's name.

    Attributes:
        is_first: It is no re-execution.
        is_automatic: It is a retry by Dagster.
    """

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str) -> None:
        self.instance = instance
        self._run = run
        self._airflow = airflow
        self._root_run_id = run.root_run_id or run.run_id
        self.run_id = run.run_id
        self.is_first = run.parent_run_id is None
        self.is_automatic = "dagster/retry_number" in run.tags
        self._plan_tag = build_plan_tag(airflow)
        # A re-execution from the UI need not have the tags of the attempt before it.
        self._parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
        parent = self._parent
        # An earlier step of this run may have written tags since the run was loaded.
        stored = instance.get_run_by_id(run.run_id) or run
        self._plans = {**_read_plans(parent, airflow), **_read_plans(stored, airflow)}
        if self._plans:
            self._tag(self._plan_tag, _pack(self._plans))
        self._own_plans: set[str] = set()
        detached = _read_detached(stored, airflow)
        is_inherited = parent is not None and detached == _read_detached(parent, airflow)
        self._detached = [] if is_inherited else sorted(detached)
        self._lock = Lock()
        if is_inherited and detached:
            self.detach()  # clears the tag

    def build_run_id(self, target: Target, number: int = 1) -> str:
        return build_run_id(self._root_run_id, target.partition, number)

    def get_request(self, target: Target) -> Request | None:
        """What the event sensor asked of this Dagster run, or of the attempt before it."""
        return read_request(self._run, self._airflow, target.dag_id) or read_request(
            self._parent, self._airflow, target.dag_id
        )

    def owns(self, target: Target, run: DagRun) -> bool:
        """Whether this Dagster run, or an attempt before it, triggered or cleared the DAG run."""
        is_triggered = parse_root_run_id(run.run_id) == self._root_run_id
        run_id, mark = self._plans.get(target.name, ("", _ADOPTED))
        return is_triggered or (run_id == run.run_id and mark != _ADOPTED)

    def get_planned_run_id(self, target: Target) -> str | None:
        """The run that an attempt adopted, or was about to clear, for this target."""
        run_id, _ = self._plans.get(target.name, (None, ""))
        return run_id

    def is_clear_pending(self, target: Target, run: DagRun) -> bool:
        """Whether a clear was planned and not made: the run is as it was when it was planned."""
        return self._plans.get(target.name) == (run.run_id, _build_mark(run))

    def has_planned_clear(self, target: Target) -> bool:
        """Whether this very attempt planned to run the target's DAG run again."""
        return target.name in self._own_plans

    def plan_clear(self, target: Target, run: DagRun) -> None:
        """Record that a finished run is about to be run again, before it is."""
        self._own_plans.add(target.name)
        self._write_plan(target, run, _build_mark(run))

    def record_adoption(self, target: Target, run: DagRun) -> None:
        """Record that a run which somebody else triggered is taken as the target's."""
        self._write_plan(target, run, _ADOPTED)

    def detach(self, *runs: RunKey) -> None:
        """Leave DAG runs to observation, which then reports them."""
        with self._lock:
            self._detached += runs
            self._tag(build_detached_tag(self._airflow), _pack(self._detached))

    def tag_dag_run(self, dag_id: str, run_ids: list[str]) -> None:
        more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
        self._tag(build_dag_run_tag(self._airflow, dag_id), f"{run_ids[0]}{more}")

    def find_launched(self, target: Target, run_ids: Iterable[str]) -> str | None:
        """Find which of some Dagster runs, the latest first, was requested by automation before
        this one, was no re-execution, and has launched a target or may still do so."""
        others = list(run_ids)
        if self.run_id in others:
            others = others[others.index(self.run_id) + 1 :]
        if not others:
            return None
        launched = build_dag_run_tag(self._airflow, target.dag_id)
        records = self.instance.get_run_records(dg.RunsFilter(run_ids=others))
        runs = [record.dagster_run for record in records]
        same = (
            run.run_id
            for run in runs
            if is_automation(run)
            and run.parent_run_id is None
            and (launched in run.tags or run.status in _NOT_ENDED)
        )
        return next(same, None)

    def fetch_other_attempts(self) -> list[dg.DagsterRun]:
        """Fetch the other active Dagster runs of the same root."""
        filters = (
            dg.RunsFilter(run_ids=[self._root_run_id], statuses=_STARTED),
            dg.RunsFilter(tags={_ROOT_TAG: self._root_run_id}, statuses=_STARTED),
        )
        records = [record for each in filters for record in self.instance.get_run_records(each)]
        runs = [record.dagster_run for record in records]
        return [run for run in runs if run.run_id != self._run.run_id]

    def find_earlier_owners(
        self, run: DagRun, is_alive: Callable[[dg.DagsterRun], bool]
    ) -> list[str]:
        """Find the living Dagster runs that report a DAG run in place of this one: the one that
        triggered it, or of several that adopted it those with a smaller id."""
        owners = find_owners(self.instance, self._airflow, [run.key], is_alive)[run.key]
        return list(takewhile(lambda owner: owner != self._run.run_id, owners))

    def count_active_runs(self) -> int:
        """Count active Dagster runs that launch DAG runs of this Airflow: from 1 to 50."""
        return max(1, len(fetch_monitoring_runs(self.instance, self._airflow, limit=50)))

    def fetch_status(self) -> dg.DagsterRunStatus | None:
        """Fetch this run's status; None if a person has deleted the run."""
        run = self.instance.get_run_by_id(self._run.run_id)
        return run.status if run else None

    def _tag(self, key: str, value: str) -> None:
        add_run_tags(self.instance, self._run.run_id, {key: value})

    def _write_plan(self, target: Target, run: DagRun, mark: str) -> None:
        with self._lock:
            self._plans[target.name] = (run.run_id, mark)
            plans = _pack(self._plans)
            # A step in another process may write the run's tags at the same moment.
            for _ in range(_WRITES):
                self._tag(self._plan_tag, plans)
                written = self.instance.get_run_by_id(self._run.run_id)
                if written is None or written.tags.get(self._plan_tag) == plans:
                    break


def _build_mark(run: DagRun) -> str:
    return f"{run.state} {run.end_date.isoformat() if run.end_date else ''}".rstrip()
