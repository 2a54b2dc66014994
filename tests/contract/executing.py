"""An instance's DAGs as Dagster runs them: once by `materialize`, and again as re-executions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import InstanceDeclaration
from federation_defs.execution import build_execution
from federation_defs.lineage import build_specs
from federation_defs.naming import build_asset_key
from tests.contract.fake_airflow import PASSWORD
from tests.contract.worlds import SIGN_INS, connect

SOURCE = "warehouse/load_customers"  # what starts a DAG here; it is never asked for
TIMEOUT = {"trigger": {"timeout": "1s"}}


def build_assets(client: AirflowClient, dags: Mapping[str, Any]) -> dg.AssetsDefinition:
    """The multi_asset of an instance.

    Args:
        dags: What is declared of its DAGs, by id; those without `depends_on` depend on another
            instance.
    """
    declaration = InstanceDeclaration.model_validate(
        {
            "name": client.instance,
            "url": client.url,
            "auth": {"type": "basic", "username": "nobody", "password": "nothing"},
            "dags": {
                dag_id: {"depends_on": [SOURCE], **declared} for dag_id, declared in dags.items()
            },
        }
    )
    specs = build_specs(declaration, None, set())
    return build_execution(client, declaration.downstreams, specs)


@dataclass(frozen=True)
class Outcome:
    """How a Dagster run went.

    Attributes:
        materialized: DAG ids, in order.
        metadata: Of each of them.
        failure: The step's failure as a person reads it; None if there was none.
        failure_metadata: What comes with it.
    """

    run_id: str
    success: bool
    materialized: list[str]
    metadata: dict[str, Mapping[str, dg.MetadataValue]]
    failure: str | None
    failure_metadata: Mapping[str, dg.MetadataValue]


def materialize(
    client: AirflowClient,
    dags: Sequence[str] | Mapping[str, Any],
    instance: dg.DagsterInstance,
    selection: Sequence[str] | None = None,
) -> Outcome:
    """Materializes DAGs of an instance: those selected, or all."""
    declared = dags if isinstance(dags, Mapping) else {dag_id: {} for dag_id in dags}
    keys = [build_asset_key(client.instance, dag_id) for dag_id in selection or declared]
    result = dg.materialize(
        [build_assets(client, declared)],
        selection=dg.AssetSelection.assets(*keys),
        instance=instance,
        raise_on_error=False,
    )
    return _read_outcome(result)


def build_job(attempt: Mapping[str, Any]) -> dg.JobDefinition:
    """The job over an instance's DAGs; Dagster calls this for each attempt at it."""
    client = connect(attempt["url"], SIGN_INS[attempt["api"]], PASSWORD)
    job = dg.define_asset_job("attempt", executor_def=dg.in_process_executor)
    definitions = dg.Definitions([build_assets(client, attempt["dags"])], jobs=[job])
    return definitions.resolve_job_def("attempt")


class Attempts:
    """One Dagster run of some DAGs, and its re-executions.

    Args:
        declared: What is declared of each of the DAGs.
    """

    def __init__(
        self,
        client: AirflowClient,
        dag_ids: Sequence[str],
        instance: dg.DagsterInstance,
        declared: Mapping[str, Any] | None = None,
    ) -> None:
        dags = {dag_id: dict(declared or {}) for dag_id in dag_ids}
        attempt = {"url": client.url, "api": client.dialect.api, "dags": dags}
        self._job = dg.build_reconstructable_job(__name__, "build_job", (attempt,))
        self._instance = instance

    def execute(self, parent: Outcome | None = None) -> Outcome:
        """A first attempt, or one that re-executes another."""
        options = dg.ReexecutionOptions(parent.run_id) if parent else None
        with dg.execute_job(
            self._job, self._instance, raise_on_error=False, reexecution_options=options
        ) as result:
            return _read_outcome(result)


def _read_outcome(result: dg.ExecuteInProcessResult | dg.ExecuteJobResult) -> Outcome:
    materializations = [
        event.step_materialization_data.materialization
        for event in result.all_events
        if event.is_step_materialization
    ]
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    user_failure = failures[0].user_failure_data if failures else None
    error = failures[0].error if failures else None
    return Outcome(
        run_id=result.run_id,
        success=result.success,
        materialized=[event.asset_key.path[-1] for event in materializations],
        metadata={event.asset_key.path[-1]: event.metadata for event in materializations},
        failure=user_failure.description if user_failure else error and error.to_string(),
        failure_metadata=user_failure.metadata if user_failure else {},
    )
