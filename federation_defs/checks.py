"""The asset check `dag_run` of every DAG: did its last run leave what it is there for?

Observation evaluates it with each finished run. Executing it asks Airflow for the run that ended
last.
"""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

from collections.abc import Iterable, Iterator, Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import AirflowError
from federation_defs.events import build_check_result
from federation_defs.naming import (
    CHECK_NAME,
    build_asset_key,
    build_checks_name,
    build_dag_id,
    build_output_names,
)
from federation_defs.outcome import add_log_tails, fetch_outcome


def build_check_spec(instance: str, dag_id: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        CHECK_NAME,
        asset=build_asset_key(instance, dag_id),
        description=f"The last finished run of DAG {dag_id} in Airflow {instance} is a success. "
        "Evaluated with each run that ends; executing it asks Airflow for the last one.",
    )


def build_checks(
    client: AirflowClient, dags: Mapping[str, SuccessDeclaration | None]
) -> dg.AssetChecksDefinition:
    """The checks of those DAGs that Dagster does not run itself.

    Args:
        dags: By DAG id, what decides on the success of their runs.
    """
    # By an op and not by @multi_asset_check, which derives the outputs' names from the keys: that
    # fails on letters outside ASCII, and on two DAG ids that differ in a dot and a dash.
    names = build_output_names(list(dags))

    @dg.op(
        name=build_checks_name(client.instance),
        ins={name: dg.In(dg.Nothing) for name in names.values()},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in names.values()},
    )
    def check_dags(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = context.selected_asset_check_keys
        yield from run_checks(client, dags, [key.asset_key for key in keys], context)

    return dg.AssetChecksDefinition.create(
        keys_by_input_name={
            name: build_asset_key(client.instance, dag_id) for dag_id, name in names.items()
        },
        node_def=check_dags,
        check_specs_by_output_name={
            name: build_check_spec(client.instance, dag_id) for dag_id, name in names.items()
        },
        can_subset=True,
    )


def run_checks(
    client: AirflowClient,
    dags: Mapping[str, SuccessDeclaration | None],
    keys: Iterable[dg.AssetKey],
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult]:
    """The checks of some DAGs, by what Airflow says now; none for a DAG of which no run ended.

    Raises:
        dagster.Failure: Airflow could not be asked about one or more of them.
    """
    errors = []
    for dag_id in sorted(filter(None, (build_dag_id(client.instance, key) for key in keys))):
        try:
            run = client.fetch_latest_finished_run(dag_id)
            if run is None:
                context.log.info(f"No run of {dag_id} has ended in Airflow '{client.instance}'.")
                continue
            outcome = add_log_tails(client, fetch_outcome(client, run, dags[dag_id]))
        except AirflowError as error:
            errors.append(str(error))
            continue
        yield build_check_result(client, outcome)
    if errors:
        raise dg.Failure("\n".join(errors))
