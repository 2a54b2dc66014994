"""Run tags, in which a Dagster run that launches DAG runs stores what other processes need.

Tags outlive the worker. They are the only state that execution keeps in Dagster. `<instance>` is
the Airflow instance's name. `naming.py` builds the keys.

`federation/waits_for.<instance>`
    "true". Written by the sensor that requests the run, and by `Heartbeats` during a step.
    Observation reads it to find runs whose worker died, and runs that took over DAG runs of others.
    A step reads it to find the latter, and to count the runs that may be waiting for a slot under
    `limits.max_active_runs`. The event sensor reads it to find the DAGs that are running.
`federation/alive_at.<instance>`
    The Dagster run's id, seconds since 1970 by the worker's clock, and "waits" while the step waits
    for other attempts. Written by `Heartbeats` every few seconds. `HeartbeatMonitor` does not
    interpret the time: it only measures how long the value stays the same, so that clocks don't
    matter. It also reads whose heartbeat it is, and whether the step waits. Any text is accepted.
`federation/runs_again.<instance>`
    JSON, `{target name: [run id, mark]}`, for DAG runs that this Dagster run has adopted, or is
    about to clear or replace. The mark is "adopted" for an adopted run, else the run's state and
    end date before it was cleared. Written by `CurrentRun` before the step acts. Read by
    re-executions, which compare the mark to find whether the run was cleared, and by observation
    and other steps, which leave these runs to their Dagster run.
`federation/no_longer_waits_for.<instance>`
    JSON, `[[DAG id, run id], ...]`, for DAG runs that the Dagster run won't report. Written by
    `CurrentRun.detach`. Read by observation, which reports these DAG runs instead, by steps that
    wait for the same DAG runs, and by re-executions.
`federation/dag_run.<instance>.<DAG id>`
    The run id, and " and <n> more" for several partitions. Written by `CurrentRun` when a DAG run
    was launched. People can search the list of runs by it. Read by a step, to find whether an
    earlier Dagster run has launched the DAG, and by the event sensor, for `reruns`.

`federation/request.<instance>.<DAG id>`
    JSON, `{"events": [[asset path, position], ...], "conf": {...}, "clears": run id, "date": ISO
    8601}`: the events for which the DAG is started, the newest last; the conf that its `only_if`
    returned; the DAG run to clear instead of triggering a new one; the logical date. All but the
    events may be null or left out. Written by the event sensor. Read by the step, and by the event
    sensor, to find the DAG run to clear.
`federation/after.<instance>.<DAG id>`
    The upstream, its state and the run id of the newest of these events. Written by the event
    sensor, and read by it to find what an upstream run has led to. People can read it, too.

JSON of more than 1,000 characters is stored as "zlib:" and the base64 of its zlib compression,
because MySQL keeps at most 64 kB of all tags of a run. If a value of `runs_again` or
`no_longer_waits_for` is still too long for PostgreSQL, it is split. The first part begins with the
number of parts, as in "3:zlib:...". The others are in tags of the same name with the suffixes ".2"
and ".3".

A re-execution inherits the tags of the run before it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

import dagster as dg

from federation_defs.airflow.models import RunKey
from federation_defs.naming import (
    build_cause_tag,
    build_dag_run_tag,
    build_detached_tag,
    build_launching_tags,
    build_plan_tag,
    build_request_tag,
    parse_root_run_id,
)

_COMPRESSED = "zlib:"
_MAX_PLAIN_CHARACTERS = 1000
_MAX_CHARACTERS = 2400  # PostgreSQL's index of tags takes 2,700 bytes, key included (dagster 1.13)
# Raised when a tag is read that a person has edited.
_INVALID = (AttributeError, KeyError, RecursionError, TypeError, ValueError, zlib.error)
_RUNS_PER_CAUSE = 10  # the latest
_KEYS_PER_QUERY = 200
ROOT_TAG = "dagster/root_run_id"  # only re-executions have it
_PARTITION_TAG = "dagster/partition"
_PARTITION_TAGS = {_PARTITION_TAG, "dagster/asset_partition_range_start"}
_RUN_KEY_TAG = "dagster/run_key"
_BY_CODE = {"dagster/schedule_name", "dagster/sensor_name"}
NOT_ENDED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
STARTED = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)

_lock = Lock()


def add_run_tags(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a Dagster run, one thread of this process at a time.

    Dagster reads all tags of the run and writes them back with the new ones (1.13,
    `SqlRunStorage.add_run_tags`). If two threads did so at once, the tags of one would be lost.
    """
    with _lock:
        instance.add_run_tags(run_id, tags)


def is_from_condition(run: dg.DagsterRun) -> bool:
    """Whether an automation condition requested the run."""
    return "dagster/from_automation_condition" in run.tags


def is_by_person(run: dg.DagsterRun) -> bool:
    """Whether a person started the run: neither a schedule nor a sensor requested it."""
    return _BY_CODE.isdisjoint(run.tags)


def describe_cause(run: dg.DagsterRun) -> str:
    """Return who or what requested the run, as a clause that follows the run's name."""
    if is_from_condition(run):
        return "which automation requested"
    if backfill := run.tags.get("dagster/backfill"):
        return f"of backfill {backfill}"
    for kind in ("schedule", "sensor"):
        if name := run.tags.get(f"dagster/{kind}_name"):
            return f"which {kind} {name} requested"
    person = run.tags.get("user")
    return f"which {person} launched" if person else "which a person launched"


def fetch_dagster_runs(
    instance: dg.DagsterInstance, limit: int | None = None, **filters: Any
) -> list[dg.DagsterRun]:
    """Fetch the Dagster runs that a `dagster.RunsFilter` selects, the latest first."""
    records = instance.get_run_records(dg.RunsFilter(**filters), limit=limit)
    return [record.dagster_run for record in records]


def fetch_launching_runs(
    instance: dg.DagsterInstance,
    airflow: str,
    statuses: Sequence[dg.DagsterRunStatus] = STARTED,
    limit: int | None = None,
) -> list[dg.DagsterRun]:
    """Fetch the Dagster runs that launch DAG runs of an Airflow instance, the latest first."""
    return fetch_dagster_runs(
        instance, limit, statuses=statuses, tags=build_launching_tags(airflow)
    )


def find_owners(
    instance: dg.DagsterInstance,
    airflow: str,
    keys: Iterable[RunKey],
    is_alive: Callable[[dg.DagsterRun], bool],
) -> dict[RunKey, list[str]]:
    """Find the ids of the living Dagster runs that triggered, adopted or cleared each DAG run.

    The run that triggered it comes first. The others follow in the order of their ids. Those that
    have detached it are left out.
    """
    found: dict[RunKey, list[tuple[bool, str]]] = {key: [] for key in keys}
    roots = {key: parse_root_run_id(key[1]) for key in found}
    for owner in filter(is_alive, fetch_launching_runs(instance, airflow) if found else ()):
        plans, root = read_plans(owner, airflow), owner.tags.get(ROOT_TAG, owner.run_id)
        planned = {(target.split(" [")[0], run_id) for target, (run_id, _) in plans.items()}
        detached = read_detached(owner, airflow)
        for key in found:
            if (roots[key] == root or key in planned) and key not in detached:
                found[key].append((roots[key] != root, owner.run_id))
    return {key: [run_id for _, run_id in sorted(owners)] for key, owners in found.items()}


def read_plans(run: dg.DagsterRun | None, airflow: str) -> dict[str, tuple[str, str]]:
    """Return the run ids and marks in the plan tag of a Dagster run, by target name. Empty if it
    has no such tag, or an invalid one."""
    try:
        plans = _unpack(_join(run, build_plan_tag(airflow)) or "{}") if run else {}
        return {name: (str(run_id), str(mark)) for name, (run_id, mark) in plans.items()}
    except _INVALID:
        return {}


def read_detached(run: dg.DagsterRun, airflow: str) -> set[RunKey]:
    """Return the keys of the DAG runs that a Dagster run has detached. Empty if its tag is
    invalid."""
    try:
        detached = _unpack(_join(run, build_detached_tag(airflow)) or "[]")
        return {(str(dag_id), str(run_id)) for dag_id, run_id in detached}
    except _INVALID:
        return set()


def pack(value: Any) -> str:
    """Return a value as JSON, which is compressed if it is long."""
    text = json.dumps(value)
    if len(text) <= _MAX_PLAIN_CHARACTERS:
        return text
    return _COMPRESSED + b64encode(zlib.compress(text.encode())).decode()


def build_long_tags(key: str, value: Any) -> dict[str, str]:
    """Build the tags that hold a value as JSON, of any length."""
    text = pack(value)
    starts = range(0, len(text), _MAX_CHARACTERS)
    parts = [text[start : start + _MAX_CHARACTERS] for start in starts]
    if len(parts) > 1:
        parts[0] = f"{len(parts)}:{parts[0]}"
    return {key if number == 1 else f"{key}.{number}": part for number, part in enumerate(parts, 1)}


def _join(run: dg.DagsterRun, key: str) -> str:
    """Return the text that `build_long_tags` has split; empty if the run has no such tag.

    Raises:
        KeyError: A part is missing.
    """
    text = run.tags.get(key, "")
    count, colon, first = text.partition(":")
    if not (colon and count.isdecimal()):
        return text
    return first + "".join(run.tags[f"{key}.{number}"] for number in range(2, int(count) + 1))


def _unpack(text: str) -> Any:
    if text.startswith(_COMPRESSED):
        text = zlib.decompress(b64decode(text.removeprefix(_COMPRESSED))).decode()
    return json.loads(text)


@dataclass(frozen=True)
class Target:
    """A DAG that a step runs, or one partition of it."""

    dag_id: str
    partition: str | None = None

    @property
    def name(self) -> str:
        return self.dag_id if self.partition is None else f"{self.dag_id} [{self.partition}]"


@dataclass(frozen=True)
class Request:
    """How the event sensor requests a run of one DAG.

    Attributes:
        events: The asset key and the position in the event log of each event that led to the
            request, the newest last.
        conf: The conf that `only_if` returned; None for the declared one.
        clears: The id of the DAG run to clear; None to trigger a new one.
        logical_date: That of the upstream run, if `trigger.logical_date` is "upstream".
    """

    events: Sequence[tuple[dg.AssetKey, int]]
    conf: Mapping[str, Any] | None = None
    clears: str | None = None
    logical_date: datetime | None = None

    def build_tags(self, airflow: str, dag_id: str) -> dict[str, str]:
        events = [[key.path, position] for key, position in self.events]
        date = self.logical_date and self.logical_date.isoformat()
        values = {"events": events, "conf": self.conf, "clears": self.clears, "date": date}
        return {build_request_tag(airflow, dag_id): pack(values)}


def read_request(run: dg.DagsterRun | None, airflow: str, dag_id: str) -> Request | None:
    """Return the event sensor's request for a DAG in a Dagster run; None if the event sensor did
    not request it, or if the tag is invalid."""
    try:
        values = _unpack(run.tags[build_request_tag(airflow, dag_id)]) if run else {}
        events = [(dg.AssetKey(path), int(position)) for path, position in values["events"]]
        date = values.get("date") and datetime.fromisoformat(values["date"])
        return Request(events, values.get("conf"), values.get("clears"), date)
    except _INVALID:
        return None


def has_partitions(run: dg.DagsterRun) -> bool:
    """Whether the run is for one or several partitions."""
    return not _PARTITION_TAGS.isdisjoint(run.tags)


def get_partition(run: dg.DagsterRun) -> str | None:
    """Return the partition of a run; None if it has none, or several."""
    return run.tags.get(_PARTITION_TAG)


def find_run_after(
    instance: dg.DagsterInstance, airflow: str, dag_id: str, cause: str, partition: str | None
) -> dg.DagsterRun | None:
    """Find the last Dagster run that was requested for a cause, and that has launched the DAG or
    may still do so. Only the last ten runs that were requested for it are considered.

    Args:
        cause: The value of the cause tag.
        partition: If given, only runs of this partition count.
    """
    tags = {build_cause_tag(airflow, dag_id): cause}
    if partition is not None:
        tags[_PARTITION_TAG] = partition
    runs = fetch_dagster_runs(instance, tags=tags, limit=_RUNS_PER_CAUSE)
    return next((run for run in runs if may_have_launched(run, airflow, dag_id)), None)


def may_have_launched(run: dg.DagsterRun, airflow: str, dag_id: str) -> bool:
    """Whether a Dagster run has launched a DAG, or may still do so because it has not ended."""
    return build_dag_run_tag(airflow, dag_id) in run.tags or run.status in NOT_ENDED


def find_requested(instance: dg.DagsterInstance, run_keys: Sequence[str]) -> set[str]:
    """Return those of some run keys for which Dagster has created a run."""
    found = set[str]()
    for start in range(0, len(run_keys), _KEYS_PER_QUERY):
        tags = {_RUN_KEY_TAG: run_keys[start : start + _KEYS_PER_QUERY]}
        found |= {run.tags[_RUN_KEY_TAG] for run in fetch_dagster_runs(instance, tags=tags)}
    return found


def is_only_request(instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str) -> bool:
    """Whether an event sensor requested a run, or the run of which it is a re-execution, and the
    event sensor of no other code location requested the same run."""
    key = run.tags.get(_RUN_KEY_TAG)
    if key is None or not any(tag.startswith(build_request_tag(airflow, "")) for tag in run.tags):
        return False
    same = fetch_dagster_runs(instance, tags={_RUN_KEY_TAG: key})
    return {each.root_run_id or each.run_id for each in same} <= {run.root_run_id or run.run_id}
