"""Finished runs of one instance, as asset events: the sensor.

It asks for what changed since it last asked, by the server's clock and with an overlap, because
rows appear late; it remembers what it saw in that overlap; and before it reports a run it asks the
event log, so that a lost cursor, or a crash between "reported" and "remembered", reports nothing
twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from hashlib import blake2b

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.errors import UnreachableError
from federation_defs.naming import (
    build_asset_key,
    build_observation_sensor_name,
    parse_root_run_id,
)
from federation_defs.recovery import end_orphaned_runs
from federation_defs.reporting import CLOCK_SKEW, build_run_metadata, select_unreported

OVERLAP = timedelta(seconds=120)
LOOKBACK_ON_FIRST_START = timedelta(hours=1)
CURSOR_VERSION = 2


@dataclass(frozen=True)
class Cursor:
    """What one tick tells the next.

    Attributes:
        since: The server's clock when it was last asked, ISO 8601.
        seen: Fingerprints of the finished runs in the overlap that are dealt with.
        held: Finished runs, as (DAG id, run id), that a living Dagster run is about to report.
        version: Of this format.
    """

    since: str
    seen: tuple[str, ...] = ()
    held: tuple[tuple[str, str], ...] = ()
    version: int = CURSOR_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str | None) -> Cursor:
        """The cursor; a new one, that looks back an hour, if there is none or none that we read."""
        content = _parse_object(text)
        first = (datetime.now(timezone.utc) - LOOKBACK_ON_FIRST_START).isoformat()
        if content.get("version") != CURSOR_VERSION:
            return Cursor(since=first)
        try:
            datetime.fromisoformat(content["since"])
            held = tuple((dag_id, run_id) for dag_id, run_id in content.pop("held"))
            return Cursor(seen=tuple(content.pop("seen")), held=held, **content)
        except (KeyError, TypeError, ValueError):  # a person edited it
            return Cursor(since=first)


def build_observation_sensor(
    client: AirflowClient, dag_ids: Collection[str], interval_s: float
) -> dg.SensorDefinition:
    """The sensor that reports an instance's finished runs.

    Args:
        dag_ids: The DAGs that are assets; runs of others are passed over.
        interval_s: Seconds between looks.
    """

    @dg.sensor(
        name=build_observation_sensor_name(client.instance),
        # One less: the daemon loops every 5 s, and would pass over every other turn of a sensor
        # that is due in exactly 5.
        minimum_interval_seconds=max(1, round(interval_s) - 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports the finished DAG runs of Airflow {client.instance}.",
    )
    def observe(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        end_orphaned_runs(context.instance, client.instance, context.log)
        try:
            return _observe(context, client, frozenset(dag_ids))
        except UnreachableError as error:
            # The cursor stays where it is: what ends meanwhile is reported when it is back.
            return dg.SkipReason(str(error))

    return observe


def _observe(
    context: dg.SensorEvaluationContext, client: AirflowClient, dag_ids: frozenset[str]
) -> dg.SensorResult:
    cursor = Cursor.from_json(context.cursor)
    changed = client.fetch_changed_runs(datetime.fromisoformat(cursor.since) - OVERLAP)
    runs = _add_held(client, changed.runs, cursor.held)
    finished = [run for run in runs if run.is_finished and run.dag_id in dag_ids]

    known = [run for run in finished if _build_fingerprint(run) in cursor.seen]
    new = [run for run in finished if _build_fingerprint(run) not in cursor.seen]
    successes = [run for run in new if run.is_success]
    unreported = _select_unreported(context.instance, client.instance, successes)
    held = [run for run in unreported if _has_living_owner(context.instance, run)]
    events = [
        dg.AssetMaterialization(
            asset_key=build_asset_key(client.instance, run.dag_id),
            metadata=build_run_metadata(client, run),
        )
        for run in unreported
        if run not in held
    ]
    seen = [_build_fingerprint(run) for run in [*known, *new] if run not in held]
    return dg.SensorResult(
        asset_events=events,
        skip_reason=None if events else f"No run of Airflow '{client.instance}' ended since.",
        cursor=Cursor(
            since=_read_clock(changed.server_time).isoformat(),
            seen=tuple(seen),
            held=tuple((run.dag_id, run.run_id) for run in held),
        ).to_json(),
    )


def _read_clock(server_time: datetime | None) -> datetime:
    """From when on to ask next time, but for the overlap: when the server was asked, by its own
    clock; by ours if that is behind, since a proxy's clock may be ahead of the database's."""
    now = datetime.now(timezone.utc)
    return min(server_time, now) if server_time else now - CLOCK_SKEW


def _add_held(
    client: AirflowClient, runs: list[DagRun], held: Iterable[tuple[str, str]]
) -> list[DagRun]:
    """The changed runs, and those held that have left the window meanwhile."""
    present = {(run.dag_id, run.run_id) for run in runs}
    fetched = client.fetch_runs(key for key in held if key not in present)
    return [*runs, *fetched.values()]


def _has_living_owner(instance: dg.DagsterInstance, run: DagRun) -> bool:
    """Whether a Dagster run that triggered this one is still there to report it."""
    root_run_id = parse_root_run_id(run.run_id)
    if root_run_id is None or (root := instance.get_run_by_id(root_run_id)) is None:
        return False
    retries = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": root_run_id}))
    return any(not owner.is_finished for owner in (root, *retries))


def _select_unreported(instance: dg.DagsterInstance, name: str, runs: list[DagRun]) -> list[DagRun]:
    """The runs that no event tells of, in the order in which they ended."""
    unreported: list[DagRun] = []
    for dag_id in {run.dag_id for run in runs}:
        of_dag = [run for run in runs if run.dag_id == dag_id]
        unreported += select_unreported(instance, build_asset_key(name, dag_id), of_dag)
    return sorted(unreported, key=_by_end)


def _by_end(run: DagRun) -> tuple[datetime, str]:
    return run.end_date or datetime.max.replace(tzinfo=timezone.utc), run.run_id


def _build_fingerprint(run: DagRun) -> str:
    """A run in one of its endings; a clear and a rerun, or a state set by hand, make another."""
    text = "\n".join((run.dag_id, run.run_id, run.state, str(run.end_date)))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _parse_object(text: str | None) -> dict:
    try:
        content = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
