"""The asset check `dag_run` of every DAG: its last finished run is a success."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import AirflowError, DagNotFoundError
from federation_defs.events import build_check_result
from federation_defs.naming import (
    CHECK_NAME,
    build_asset_key,
    build_dag_id,
    build_op_name,
    build_output_names,
)
from federation_defs.outcome import Rules, add_log_tails, fetch_outcome


def build_check_spec(instance: str, dag_id: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        CHECK_NAME,
        asset=build_asset_key(instance, dag_id),
        description=f"The last finished run of DAG {dag_id} in Airflow {instance} is a success. "
        "Evaluated for each finished run; executing it fetches the last one from Airflow.",
    )


def build_checks(client: AirflowClient, rules: Rules) -> dg.AssetChecksDefinition:
    """Build the checks of DAGs that Dagster does not run itself."""
    # `@multi_asset_check` derives the outputs' names from the keys. That fails for letters outside
    # ASCII, and for two DAG ids that differ in a dot and a dash (dagster 1.13).
    names = build_output_names(rules)
    specs = {name: build_check_spec(client.instance, dag_id) for dag_id, name in names.items()}

    @dg.op(
        name=build_op_name(client.instance, "checks"),
        out=dict.fromkeys(specs, dg.Out(dg.Nothing, is_required=False)),
    )
    def check_dags(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = context.selected_asset_check_keys
        yield from run_checks(client, rules, [key.asset_key for key in keys], context)

    return _create_checks(check_dags, specs)


def are_dag_checks(checks: dg.AssetsDefinition) -> bool:
    """Whether checks were built by `build_checks`."""
    keys = [spec.asset_key for spec in checks.check_specs if spec.name == CHECK_NAME]
    return any(build_dag_id(key.path[0], key) for key in keys)


def recreate_checks(checks: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """Return checks that were built by `build_checks`, with the metadata that they got later.

    Dagster makes another type of definition of them when it adds metadata, which a component in a
    YAML file gets (1.13, `CompositeYamlComponent`). It would then copy it once for each check that
    it holds: of 500 checks, 500 copies with 500 each.
    """
    specs = {spec.asset_key.path[-1]: spec for spec in checks.check_specs}
    names = build_output_names(specs)
    return _create_checks(checks.op, {names[dag_id]: spec for dag_id, spec in specs.items()})


def _create_checks(
    op: dg.OpDefinition, specs: Mapping[str, dg.AssetCheckSpec]
) -> dg.AssetChecksDefinition:
    return dg.AssetChecksDefinition.create(
        keys_by_input_name={},  # no run materializes these assets
        node_def=op,
        check_specs_by_output_name=specs,
        can_subset=True,
    )


def build_absent_evaluation(instance: str, dag_id: str, why: str) -> dg.AssetCheckEvaluation:
    """Return the failed check of a DAG that can't run, which observation stores."""
    return dg.AssetCheckEvaluation(**_describe_absence(instance, dag_id, why))


def _describe_absence(instance: str, dag_id: str, why: str) -> dict[str, Any]:
    key = build_asset_key(instance, dag_id)
    return {"asset_key": key, "check_name": CHECK_NAME, "passed": False, "description": why}


def run_checks(
    client: AirflowClient,
    rules: Rules,
    keys: Iterable[dg.AssetKey],
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks of some assets. That of a DAG that the instance does not have fails; a
    DAG without a finished run gives no result.

    Raises:
        dagster.Failure: Airflow can't be asked about one or more of the DAGs.
    """
    errors = []
    for dag_id in sorted(filter(None, (build_dag_id(client.instance, key) for key in keys))):
        try:
            client.fetch_dag(dag_id)
            run = client.fetch_latest_finished_run(dag_id)
            outcome = run and add_log_tails(client, fetch_outcome(client, run, rules[dag_id]))
        except DagNotFoundError as error:
            why = str(error)
            yield dg.AssetCheckResult(**_describe_absence(client.instance, dag_id, why))
            continue
        except AirflowError as error:
            errors.append(str(error))
            continue
        if outcome is not None:
            yield build_check_result(client, outcome)
        else:
            context.log.info(f"DAG {dag_id} has no finished run in Airflow '{client.instance}'.")
    if errors:
        raise dg.Failure("\n".join(errors))
