"""A stand-in for Dagster's sensor daemon: it evaluates the sensor and stores its cursor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import (
    DagDeclaration,
    InstanceDeclaration,
    ObserveDeclaration,
    SuccessDeclaration,
)
from federation_defs.events import ReportEvent
from federation_defs.naming import CHECK_NAME, build_asset_key, build_check_key
from federation_defs.observation import Limits, ObservedDags, build_observation_sensor
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing
from tests.contract.dagster_plus import as_server
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.database import Database, RunRow

DAG = "load_customers"
KEY = build_asset_key("metrics", DAG)


class FakeClock:
    """A clock that stands still. Sleeping advances it.

    It starts at the real time, because calls in threads have deadlines by the real clock.

    Attributes:
        elapsed_s: How far it was advanced.
        timing: A `Timing` with this clock.
    """

    def __init__(self) -> None:
        started_at = time.monotonic()
        self.elapsed_s = 0.0
        self.timing = Timing(monotonic=lambda: started_at + self.elapsed_s, sleep=self.advance)

    def advance(self, seconds: float) -> None:
        self.elapsed_s += seconds


class KilledError(BaseException):
    """The code server was killed. What catches errors does not catch this."""


class Daemon:
    """Evaluates one instance's observation sensor, tick by tick.

    Attributes:
        cursor: The cursor of the last tick that did not crash.
        stored: The events of the last tick.
        before_storing: Called once, before the next event is stored.
        rules: The `success_when` by DAG id; a change takes effect with a restart.
        partitionings: By DAG id, of DAGs that have partitions; a change takes effect with a
            restart.
        dags: What is declared of DAGs, by DAG id; a change takes effect with a restart.
        problems: What the last refresh knows to be wrong with DAGs, by instance and DAG id.
        partition_problems: The same of their partitions, by DAG id.
        absent: Why the instance does not have DAGs, by DAG id; a change takes effect with a
            restart.
        instances: What is declared of the instances of a federation, by name; a change takes effect
            with a restart.
    """

    def __init__(
        self,
        client: AirflowClient,
        dag_ids: Collection[str],
        instance: dg.DagsterInstance,
        limits: Limits | None = None,
        timing: Timing | None = None,
        **declared: Any,
    ) -> None:
        self.client = client
        self.instance = instance
        self.cursor: str | None = None
        self.rules: dict[str, SuccessDeclaration | None] = dict.fromkeys(dag_ids)
        self.partitionings: dict[str, Partitioning] = {}
        self.dags: dict[str, DagDeclaration] = {}
        self.problems: dict[tuple[str, str], str] = {}
        self.partition_problems: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self.instances: dict[str, InstanceDeclaration] = {}
        self._limits = limits or Limits()
        self._timing = timing or Timing()
        # One poll per tick, unless the test declares otherwise.
        self._observe = ObserveDeclaration.model_validate({"interval": 5, **declared})
        self.stored: list[ReportEvent] = []
        self.before_storing: Callable[[], object] | None = None
        self._killed_after = math.inf
        self._report = instance.report_runless_asset_event
        vars(instance)["report_runless_asset_event"] = self._store
        self.restart()

    def restart(self) -> None:
        """Replace the code server, whose memory is lost."""
        self.sensor = build_observation_sensor(
            self.client,
            ObservedDags(
                rules=self.rules,
                declared=self.dags,
                partitionings=self.partitionings,
                instances=self.instances,
                absent=self.absent,
                find_problem=lambda *dag: self.problems.get(dag),
                find_partition_problem=self.partition_problems.get,
            ),
            self._observe,
            self._limits,
            self._timing,
        )

    def build_context(self) -> dg.SensorEvaluationContext:
        return dg.build_sensor_context(self.instance, self.cursor, last_sensor_start_time=1.0)

    def evaluate(self, killed_after: int | None = None) -> dg.SensorResult | dg.SkipReason:
        """Return the result of the sensor, which stores its events itself.

        Raises:
            KilledError: It was killed after it had stored so many events.
        """
        self.stored = []
        self._killed_after = math.inf if killed_after is None else killed_after
        with self.build_context() as context:
            result = self.sensor(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    def tick(self, *, crashes: bool = False, killed_after: int | None = None) -> list[str]:
        """Return the ids of the runs that were materialized, in order.

        Args:
            crashes: Dagster crashes after the events were stored and before the cursor is.
            killed_after: The code server is killed after so many events, and starts anew.
        """
        try:
            result = self.evaluate(killed_after)
        except KilledError:
            self.restart()
            result = None
        if isinstance(result, dg.SensorResult):
            for event in result.asset_events:
                self.instance.report_runless_asset_event(event)
            if not crashes:
                self.cursor = result.cursor
        materializations = [
            event for event in self.stored if isinstance(event, dg.AssetMaterialization)
        ]
        return [str(event.metadata["Run ID"].value) for event in materializations]

    def _store(self, event: ReportEvent) -> None:
        act, self.before_storing = self.before_storing, None
        if act is not None:
            act()
        if len(self.stored) >= self._killed_after:
            raise KilledError
        self._report(event)
        self.stored.append(event)


def fetch_reported_runs(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> list[Mapping[str, dg.MetadataValue]]:
    """Return the metadata of all materializations of an asset, oldest first."""
    records = instance.fetch_materializations(key, limit=10_000, ascending=True).records
    events = [record.asset_materialization for record in records]
    return [event.metadata for event in events if event is not None]


def fetch_reported_observations(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> list[Mapping[str, dg.MetadataValue]]:
    """Return the metadata of all observations of finished runs of an asset, oldest first."""
    records = instance.fetch_observations(key, limit=10_000, ascending=True).records
    events = [record.asset_observation for record in records]
    return [event.metadata for event in events if event and "Outcome" in event.metadata]


def fetch_signals(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> list[Mapping[str, dg.MetadataValue]]:
    """Return the metadata of all observations of an asset that it is slow or late, oldest first."""
    records = instance.fetch_observations(key, limit=10_000, ascending=True).records
    events = [record.asset_observation for record in records]
    return [event.metadata for event in events if event and "Signal" in event.metadata]


def fetch_evaluations(
    instance: dg.DagsterInstance, key: dg.AssetKey, check: str = CHECK_NAME
) -> list[dg.AssetCheckEvaluation]:
    """Return all evaluations of an asset's check, oldest first."""
    storage = as_server(instance.event_log_storage)
    history = storage.get_asset_check_execution_history(build_check_key(key, check), limit=10_000)
    events = [record.event.dagster_event for record in history if record.event]
    newest_first = [event.event_specific_data for event in events if event]
    return [data for data in newest_first[::-1] if isinstance(data, dg.AssetCheckEvaluation)]


def fetch_reported_run_ids(instance: dg.DagsterInstance, key: dg.AssetKey) -> list[str]:
    return [str(metadata["Run ID"].value) for metadata in fetch_reported_runs(instance, key)]


@dataclass
class Observed:
    """A fake Airflow with one selected DAG, and the daemon that observes it."""

    server: FakeAirflow
    daemon: Daemon

    @property
    def database(self) -> Database:
        return self.server.database

    @property
    def reported(self) -> list[str]:
        return fetch_reported_run_ids(self.daemon.instance, KEY)

    def add_run(self, run_id: str, state: str = "success", ended_s_ago: float = 1) -> RunRow:
        """Add a finished run whose row was updated just now."""
        run = self.database.start_run(DAG, run_id)
        ended = self.database.now() - timedelta(seconds=ended_s_ago)
        return self.database.finish_run(run, state, end_date=ended)


@contextmanager
def recording_statements() -> Iterator[list[str]]:
    """Collect the SQL that is sent to Dagster's databases meanwhile, by all threads.

    Without Dagster's questions about the columns of a table, which it asks before some queries.
    """
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "PRAGMA" not in statement and "pg_catalog" not in statement:
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", record)
