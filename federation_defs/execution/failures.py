"""What a person is told when a DAG run that Dagster waits for does not end well."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.errors import AirflowError, RunLostError
from federation_defs.reporting import build_check_metadata
from federation_defs.verdicts import Verdict


def join_failures(failures: Mapping[str, dg.Failure]) -> dg.Failure:
    """One failure as it is; several, by name, as one that tells of them all."""
    if len(failures) == 1:
        (failure,) = failures.values()
        return failure
    return dg.Failure(
        "\n".join(failure.description or "" for failure in failures.values()),
        metadata={
            f"{name}: {label}": value
            for name, failure in failures.items()
            for label, value in failure.metadata.items()
        },
        allow_retries=False,
    )


def build_failure(error: Exception) -> dg.Failure:
    """One that Dagster does not retry: the error says what a person has to do."""
    return dg.Failure(str(error), allow_retries=False)


def build_timeout_error(
    client: AirflowClient, run: DagRun, waited_s: float, *, is_stopped: bool
) -> RunLostError:
    following = "It was stopped" if is_stopped else "The run goes on"
    return RunLostError(
        client.instance,
        f"still has run '{run.run_id}' of DAG '{run.dag_id}' {run.state} after {waited_s:.0f} s, "
        f"which is its `trigger.timeout`. {following}: "
        f"{client.build_run_url(run.dag_id, run.run_id)}",
    )


def build_silence_error(run: DagRun, waited_s: float, error: AirflowError) -> RunLostError:
    """For a run whose time is over while its instance does not answer."""
    return RunLostError(
        error.instance,
        f"does not say what became of run '{run.run_id}' of DAG '{run.dag_id}' in the "
        f"{waited_s:.0f} s of its `trigger.timeout`: it was {run.state} when we heard of it last. "
        f"({error}) What it ends as is reported when the instance is back.",
    )


def build_deleted_error(client: AirflowClient, run: DagRun) -> RunLostError:
    return RunLostError(
        client.instance,
        f"no longer has run '{run.run_id}' of DAG '{run.dag_id}': it was deleted while we waited. "
        "Materialize the asset again for a new run.",
    )


def build_run_failure(client: AirflowClient, verdict: Verdict) -> dg.Failure:
    """A DAG run that is no success, with the tasks that failed and the end of their logs."""
    run = verdict.run
    url = client.build_run_url(run.dag_id, run.run_id)
    ended = "ended without its data" if run.is_success else "failed"
    return dg.Failure(
        f"DAG '{run.dag_id}' {ended} in Airflow '{client.instance}'. {verdict.details} {url}",
        metadata=build_check_metadata(client, verdict),
        allow_retries=False,
    )
