"""Dagster's daemons, played by a test: observation, the automation condition, and its requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import build_assets
from tests.contract.observation.daemon import Daemon
from tests.waiting import wait_for

DAG = "customer_metrics"
UPSTREAM = build_asset_key("warehouse", "load_customers")
TAGS = {"dagster/from_automation_condition": "true"}


def build_key(dag_id: str) -> dg.AssetKey:
    return build_asset_key("metrics", dag_id)


class Automation:
    """The daemons of a Dagster instance.

    Args:
        dags: What is declared of the DAGs of `airflow`, in the order in which they run.
    """

    def __init__(
        self, airflow: Airflow, instance: dg.DagsterInstance, dags: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.airflow = airflow
        self.instance = instance
        self.assets = build_assets(airflow.client, dags)
        self.observation = Daemon(airflow.client, list(dags), instance)
        self.defs = dg.Definitions([self.assets, dg.AssetSpec(UPSTREAM)])
        self._dag_ids = list(dags)
        # Some conditions go by full hours: none may pass during a test.
        wait_for(lambda: time.time() % 3600 < 3540, "the full hour has passed")
        self._cursor: Any = None
        self.tick()  # what was before is no update

    @property
    def runs(self) -> list[str]:
        """The states of all DAG runs."""
        return [run.state for run in self.airflow.database.runs]

    def update_upstream(self) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM))

    def end_run(self, executed: str = "success") -> None:
        """Ends the last DAG run, and has it observed."""
        self.airflow.database.finish_run(self.airflow.database.runs[-1], executed)
        self.observation.tick()

    def tick(self, dag_id: str = DAG, at: datetime | None = None) -> bool:
        """Whether the DAG is requested; what is requested is then run."""
        return dag_id in self.request(at)

    def request(self, at: datetime | None = None) -> list[str]:
        """Evaluate the conditions, run what they request, and return its DAG ids."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, cursor=self._cursor, evaluation_time=at
        )
        self._cursor = result.cursor
        requested = [each for each in self._dag_ids if result.get_num_requested(build_key(each))]
        if requested:
            selection = dg.AssetSelection.assets(*map(build_key, requested))
            dg.materialize(
                [self.assets],
                selection=selection,
                instance=self.instance,
                tags=TAGS,
                raise_on_error=False,
            )
        return requested

    def request_while(self, happen: Callable[[], None]) -> list[str]:
        """As `request`. Meanwhile something happens, after the tick has taken its position of the
        event log, and before it reads the upstreams."""
        get_position = SqlEventLogStorage.get_maximum_record_id

        def get_then_happen(storage: SqlEventLogStorage) -> int | None:
            position = get_position(storage)
            happen()
            return position

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqlEventLogStorage, "get_maximum_record_id", get_then_happen)
            return self.request()
