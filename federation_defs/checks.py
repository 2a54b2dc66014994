"""The asset checks of DAGs: `dag_run` of every DAG, and the others of DAGs that declare them.

- `dag_run` passes if the last finished run is a success.
- `max_duration` passes if the last finished run did not take longer than that, and no run is
  running for longer.
- `deadline` passes once a run has succeeded for the last deadline, in time or after it.
- `only_if` passes if the declared function returned an answer.
- `ready` passes if nothing keeps a DAG from running when its upstreams succeed.
- `partitions` passes if nothing is wrong with the partitions of a DAG.
"""

# No `from __future__ import annotations` here: Dagster refuses a context whose annotation is text.

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_completed_evaluations, read_deadline
from federation_defs.dagster_io.reports import fetch_successes
from federation_defs.dagster_io.run_tags import is_by_person
from federation_defs.declaration import DagDeclaration, DeadlineDeclaration
from federation_defs.errors import AirflowError, DagNotFoundError
from federation_defs.events import (
    build_check_evaluation,
    build_deadline_check,
    build_max_duration_check,
    build_partitions_metadata,
    convert_to_result,
)
from federation_defs.naming import (
    CHECK_NAME,
    DEADLINE_CHECK_NAME,
    MAX_DURATION_CHECK_NAME,
    ONLY_IF_CHECK_NAME,
    PARTITIONS_CHECK_NAME,
    READY_CHECK_NAME,
    build_asset_key,
    build_check_key,
    build_check_output_name,
    build_dag_id,
    build_op_name,
    build_output_names,
)
from federation_defs.outcome import add_log_tails, fetch_outcome

_MAX_RUNNING = 1000  # runs of all DAGs; if more are running, only the oldest are checked


def build_check_specs(instance: str, dag_id: str, dag: DagDeclaration) -> list[dg.AssetCheckSpec]:
    """Return the specs of a DAG's checks."""
    name = f"DAG {dag_id} in Airflow {instance}"
    descriptions = {
        CHECK_NAME: f"The last finished run of {name} is a success. Evaluated for each finished "
        "run; executing it fetches the last one from Airflow."
    }
    if dag.max_duration is not None:
        descriptions[MAX_DURATION_CHECK_NAME] = (
            f"No run of {name} takes longer than {dag.max_duration:.0f} s. Evaluated for each "
            "finished run, and once for a run that exceeds this while it is running; executing it "
            "fetches the runs from Airflow."
        )
    if dag.deadline is not None:
        descriptions[DEADLINE_CHECK_NAME] = (
            f"A run of {name} has succeeded for the last deadline: {dag.deadline.cron} "
            f"({dag.deadline.timezone}), or up to {dag.deadline.within:.0f} s before. Evaluated at "
            "each deadline, and for the first success after one that was missed."
        )
    if dag.trigger.only_if is not None:
        descriptions[ONLY_IF_CHECK_NAME] = (
            f"`{dag.trigger.only_if}` returned an answer when it was last called to decide whether "
            f"to run {name}. Executing this check changes nothing."
        )
    if dag.depends_on:
        descriptions[READY_CHECK_NAME] = (
            f"Passes if nothing keeps {name} from running when its upstreams succeed. Evaluated by "
            "observation when that changes; executing it changes nothing."
        )
    if dag.declares_partitions:
        descriptions[PARTITIONS_CHECK_NAME] = (
            f"Passes if the partitions of {name} are known, if the reported runs agree with them, "
            "and if no upstream has partitions too often for them. Evaluated by observation when "
            "that changes. Executing it accepts the reported runs as they are."
        )
    key = build_asset_key(instance, dag_id)
    return [
        dg.AssetCheckSpec(check, asset=key, description=description)
        for check, description in descriptions.items()
    ]


def build_checks(
    client: AirflowClient, dags: Mapping[str, DagDeclaration]
) -> dg.AssetChecksDefinition:
    """Build the checks of DAGs that Dagster does not run itself."""
    specs = [
        spec
        for dag_id, dag in dags.items()
        for spec in build_check_specs(client.instance, dag_id, dag)
    ]
    outputs = name_check_outputs(specs)

    @dg.op(
        name=build_op_name(client.instance, "checks"),
        out=dict.fromkeys(outputs, dg.Out(dg.Nothing, is_required=False)),
    )
    def check_dags(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield from run_checks(client, dags, context.selected_asset_check_keys, context)

    return _create_checks(check_dags, outputs)


def name_check_outputs(specs: Iterable[dg.AssetCheckSpec]) -> dict[str, dg.AssetCheckSpec]:
    """Return the specs of some DAGs' checks by the names of their outputs."""
    # `@multi_asset_check` derives the outputs' names from the keys. That fails for letters outside
    # ASCII, and if two DAG ids differ only in a dot and a dash (dagster 1.13).
    by_dag = [(spec.asset_key.path[-1], spec) for spec in specs]
    names = build_output_names({dag_id for dag_id, _ in by_dag})
    return {build_check_output_name(names[dag_id], spec.name): spec for dag_id, spec in by_dag}


def are_dag_checks(checks: dg.AssetsDefinition) -> bool:
    """Whether checks were built by `build_checks`."""
    keys = [spec.asset_key for spec in checks.check_specs if spec.name == CHECK_NAME]
    return any(build_dag_id(key.path[0], key) for key in keys)


def recreate_checks(checks: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """Return checks that were built by `build_checks`, with metadata that was added later, as a
    definition of the type that `build_checks` returns.

    Dagster adds metadata to the definitions of a component in a YAML file (1.13,
    `CompositeYamlComponent`), and returns a definition of another type. Dagster would copy that one
    once for each check in it: 500 checks would become 500 copies with 500 checks each.
    """
    return _create_checks(checks.op, name_check_outputs(checks.check_specs))


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
    """Return the failed evaluation of the check `dag_run` of a DAG that its Airflow does not have:
    the DAG's file is missing, or can't be parsed.

    Args:
        why: The description of the evaluation.
    """
    key = build_asset_key(instance, dag_id)
    return dg.AssetCheckEvaluation(key, CHECK_NAME, passed=False, description=why)


def run_checks(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    keys: Iterable[dg.AssetCheckKey],
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext,
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks that a Dagster run selects.

    - `dag_run` and `max_duration` are evaluated with the runs in Airflow. They have no result
      without a finished run, but `dag_run` fails if the instance does not have the DAG.
    - `only_if` and `ready` repeat their last result.
    - `deadline` passes if it failed and a success was reported since. Else it repeats its last
      result.
    - `partitions` passes if a person executes it, which accepts the reported runs as they are. Else
      it repeats its last result.

    Raises:
        dagster.Failure: One or more requests to Airflow failed. The other checks were evaluated.
    """
    errors = []
    for key in sorted(keys):
        if (dag_id := build_dag_id(client.instance, key.asset_key)) is None:
            continue
        try:
            evaluation = _evaluate(client, dag_id, dags[dag_id], key, context)
        except AirflowError as error:
            errors.append(str(error))
            continue
        if evaluation is not None:
            yield convert_to_result(evaluation)
        elif key.name not in (CHECK_NAME, MAX_DURATION_CHECK_NAME):
            context.log.info(
                f"The check `{key.name}` of DAG {dag_id} in Airflow '{client.instance}' is "
                "evaluated by a sensor. This run repeats its last result, if there is one."
            )
            yield from repeat_evaluations(context.instance, [key])
        else:
            context.log.info(f"DAG {dag_id} has no finished run in Airflow '{client.instance}'.")
    if errors:
        raise dg.Failure("\n".join(errors), allow_retries=False)


def _evaluate(
    client: AirflowClient,
    dag_id: str,
    dag: DagDeclaration,
    key: dg.AssetCheckKey,
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext,
) -> dg.AssetCheckEvaluation | None:
    """Evaluate a check; None if there is no new result."""
    if key.name == CHECK_NAME:
        return _check_last_run(client, dag_id, dag)
    if key.name == MAX_DURATION_CHECK_NAME and dag.max_duration is not None:
        return _check_duration(client, dag_id, dag.max_duration)
    if key.name == DEADLINE_CHECK_NAME and dag.deadline is not None:
        return find_deadline_check(context.instance, client.instance, dag_id, dag.deadline)
    is_accepted = key.name == PARTITIONS_CHECK_NAME and is_by_person(context.run)
    if is_accepted and dag.partitions is not None:
        return dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=True,
            description="The reported runs were accepted as they are.",
            metadata=build_partitions_metadata(dag.partitions),
        )
    return None


def _check_last_run(
    client: AirflowClient, dag_id: str, dag: DagDeclaration
) -> dg.AssetCheckEvaluation | None:
    try:
        client.fetch_dag(dag_id)
        run = client.fetch_latest_finished_run(dag_id)
    except DagNotFoundError as error:
        return build_absent_evaluation(client.instance, dag_id, str(error))
    if run is None:
        return None
    outcome = add_log_tails(client, fetch_outcome(client, run, dag.success_when))
    return build_check_evaluation(client, outcome)


def _check_duration(
    client: AirflowClient, dag_id: str, limit_s: float
) -> dg.AssetCheckEvaluation | None:
    now = datetime.now(timezone.utc)
    slow = find_slow_runs(client, {dag_id: limit_s}, now)
    run = slow[0] if slow else client.fetch_latest_finished_run(dag_id)
    return run and build_max_duration_check(client, run, limit_s, now)


def find_slow_runs(
    client: AirflowClient, limits_s: Mapping[str, float], now: datetime
) -> list[DagRun]:
    """Find the running runs that have exceeded the limit of their DAG.

    Args:
        limits_s: By DAG id, in seconds, for at least one DAG.
        now: The time by Airflow's clock.

    Raises:
        AirflowError: The running runs can't be fetched.
    """
    started_before = now - timedelta(seconds=min(limits_s.values()))
    page = client.fetch_running_runs(started_before, _MAX_RUNNING)
    return [run for run in page.entries if run.measure_s(now) > limits_s.get(run.dag_id, math.inf)]


def find_deadline_check(
    instance: dg.DagsterInstance,
    airflow: str,
    dag_id: str,
    deadline: DeadlineDeclaration,
) -> dg.AssetCheckEvaluation | None:
    """Return an evaluation of the check `deadline` that passes.

    None unless the last evaluation failed and a success was reported since. Without a reported
    success nothing is concluded, because runs that have ended may not be reported yet.
    """
    key = build_asset_key(airflow, dag_id)
    check_key = build_check_key(key, DEADLINE_CHECK_NAME)
    last = fetch_completed_evaluations(instance, [check_key]).get(check_key)
    missed = last and not last.passed and read_deadline(last)
    if not missed:
        return None
    successes = fetch_successes(instance, key, missed - deadline.window)
    evaluation = build_deadline_check(airflow, dag_id, missed, deadline.window, successes)
    return evaluation if evaluation.passed else None


def repeat_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckResult]:
    """Yield the last evaluations of checks again, in a Dagster run that is expected to evaluate
    them.

    Dagster plans all checks of each asset that it runs, and then no longer shows their earlier
    evaluations (1.13).
    """
    yield from map(convert_to_result, fetch_completed_evaluations(instance, keys).values())
