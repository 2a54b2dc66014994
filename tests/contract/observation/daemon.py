"""Dagster's sensor daemon, played by the test: it stores what a tick reports, then its cursor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import ObserveDeclaration, SuccessDeclaration
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.observation import Limits, build_observation_sensor
from federation_defs.partitions import Partitioning
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.database import Database, RunRow

DAG = "load_customers"
KEY = build_asset_key("metrics", DAG)


class Daemon:
    """One instance's observation sensor, evaluated tick by tick.

    Attributes:
        cursor: What the last tick that did not crash left.
        partitionings: Of those DAGs that have partitions; changed, they hold after a restart.
    """

    def __init__(
        self,
        client: AirflowClient,
        dag_ids: Collection[str],
        instance: dg.DagsterInstance,
        limits: Limits | None = None,
        **declared: Any,
    ) -> None:
        self.client = client
        self.instance = instance
        self.cursor: str | None = None
        self.rules: dict[str, SuccessDeclaration | None] = dict.fromkeys(dag_ids)
        self.partitionings: dict[str, Partitioning] = {}
        self._limits = limits or Limits()
        # One look a tick, unless the test says otherwise.
        self._observe = ObserveDeclaration.model_validate({"interval": 5, **declared})
        self.restart()

    def restart(self) -> None:
        """The code server dies, and another takes its place."""
        self.sensor = build_observation_sensor(
            self.client, self.rules, self._observe, self._limits, self.partitionings
        )

    def evaluate(self) -> dg.SensorResult | dg.SkipReason:
        """What the sensor gives; nothing is stored."""
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            result = self.sensor(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    def tick(self, *, crashes: bool = False) -> list[str]:
        """The run ids that were reported, in that order.

        Args:
            crashes: Between the events and the cursor, which stays as it was.
        """
        result = self.evaluate()
        if isinstance(result, dg.SkipReason):
            return []
        self.store(result)
        if not crashes:
            self.cursor = result.cursor
        return [
            str(event.metadata["Run ID"].value)
            for event in result.asset_events
            if isinstance(event, dg.AssetMaterialization)
        ]

    def store(self, result: dg.SensorResult, count: int | None = None) -> None:
        """What the daemon does first: all of the events, or the first ones of them."""
        for event in result.asset_events[:count]:
            self.instance.report_runless_asset_event(event)


def fetch_reported_runs(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> list[Mapping[str, dg.MetadataValue]]:
    """The metadata of all materializations of an asset, the first one first."""
    records = instance.fetch_materializations(key, limit=10_000, ascending=True).records
    events = [record.asset_materialization for record in records]
    return [event.metadata for event in events if event is not None]


def fetch_evaluations(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> list[dg.AssetCheckEvaluation]:
    """All evaluations of an asset's check, the first one first."""
    history = instance.event_log_storage.get_asset_check_execution_history(
        build_check_key(key), limit=10_000
    )
    events = [record.event.dagster_event for record in history if record.event]
    found = [event.event_specific_data for event in events if event]
    return [one for one in found if isinstance(one, dg.AssetCheckEvaluation)][::-1]


def fetch_reported_run_ids(instance: dg.DagsterInstance, key: dg.AssetKey) -> list[str]:
    return [str(metadata["Run ID"].value) for metadata in fetch_reported_runs(instance, key)]


@dataclass
class Observed:
    """A fake Airflow with one selected DAG, and the daemon that watches it."""

    server: FakeAirflow
    daemon: Daemon

    @property
    def database(self) -> Database:
        return self.server.database

    @property
    def reported(self) -> list[str]:
        return fetch_reported_run_ids(self.daemon.instance, KEY)

    def add_run(self, run_id: str, state: str = "success", ended_s_ago: float = 1) -> RunRow:
        """A run that is over, its row no older than its end."""
        run = self.database.start_run(DAG, run_id)
        ended = self.database.now() - timedelta(seconds=ended_s_ago)
        return self.database.finish_run(run, state, end_date=ended)
