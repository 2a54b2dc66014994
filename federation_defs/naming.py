"""Asset keys, run ids, run tags and definition names. None is built anywhere else."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from itertools import chain, count
from typing import Literal
from urllib.parse import quote

import dagster as dg

RUN_ID_PREFIX = "dagster__"
CHECK_NAME = "dag_run"
ONLY_IF_CHECK_NAME = "only_if"
MAX_DURATION_CHECK_NAME = "max_duration"
DEADLINE_CHECK_NAME = "deadline"
READY_CHECK_NAME = "ready"
PARTITIONS_CHECK_NAME = "partitions"
STATE_CHECK_NAME = "up_to_date"
REFRESH_JOB_NAME = "federation__refresh_state"
REFRESH_OP_NAME = "federation__states"
_CHECK_NAMES = (
    *(CHECK_NAME, ONLY_IF_CHECK_NAME),
    *(MAX_DURATION_CHECK_NAME, DEADLINE_CHECK_NAME, READY_CHECK_NAME, PARTITIONS_CHECK_NAME),
)

# Dagster refuses these as names of outputs (1.13).
_RESERVED_WORDS = {
    *("context", "conf", "config", "meta", "arg_dict", "dict", "input_arg_dict", "output_arg_dict"),
    *("int", "str", "float", "bool", "input", "output", "type"),
    *keyword.kwlist,
}


def build_asset_key(instance: str, dag_id: str) -> dg.AssetKey:
    """Return the asset key of a DAG: `[instance, "dag", dag_id]`.

    The DAG id is not changed. (dagster-airlift replaces characters outside `[A-Za-z0-9_]` with `_`,
    so that `a-b` and `a.b` get the same key.)
    """
    return dg.AssetKey([instance, "dag", dag_id])


def build_state_asset_key(instance: str) -> dg.AssetKey:
    """Return the key of the asset that stands for the state of an instance:
    `[instance, "federation", "state"]`. No DAG has this key, and an asset of the project's own is
    unlikely to have it.
    """
    return dg.AssetKey([instance, "federation", "state"])


def build_dag_id(instance: str, key: dg.AssetKey) -> str | None:
    """Return the DAG id of an asset key; None if the asset is not a DAG of this instance."""
    match key.path:
        case [owner, "dag", dag_id] if owner == instance:
            return dag_id
    return None


def build_check_key(key: dg.AssetKey, name: str = CHECK_NAME) -> dg.AssetCheckKey:
    """Return the key of an asset check of a DAG, by default of `dag_run`, which every DAG has."""
    return dg.AssetCheckKey(key, name)


def build_sensor_name(instance: str, kind: Literal["observation", "automation", "events"]) -> str:
    return f"{instance}__{kind}"


def build_job_name(instance: str, kind: Literal["drop_waiting"]) -> str:
    return f"{instance}__{kind}"


def build_op_name(instance: str, kind: Literal["dags", "checks"]) -> str:
    """Return the name of the op (and so the step) that triggers an instance's DAGs, or executes
    their checks."""
    return f"{instance}__{kind}"


def build_output_names(dag_ids: Iterable[str]) -> dict[str, str]:
    """Return a Dagster output name for each DAG id. The names, and those of the outputs of their
    checks (`build_check_output_name`), are all different.

    Dagster allows only `[A-Za-z0-9_]`, and reserves some words. A DAG id may be one of these words,
    and may contain `.`, `-` and non-ASCII letters.
    """
    names: dict[str, str] = {}
    taken = {*_RESERVED_WORDS}
    for dag_id in sorted(dag_ids):
        plain = re.sub(r"[^A-Za-z0-9_]", "_", dag_id)
        candidates = chain([plain], (f"{plain}__{number}" for number in count(2)))
        name = next(
            name for name in candidates if name and taken.isdisjoint(_build_all_names(name))
        )
        names[dag_id] = name
        taken |= _build_all_names(name)
    return names


def build_check_output_name(output_name: str, check_name: str) -> str:
    """Return the name of the output of a check, by the name of the output of the check's asset."""
    return f"{output_name}__{check_name}"


def _build_all_names(output_name: str) -> set[str]:
    return {output_name, *(build_check_output_name(output_name, check) for check in _CHECK_NAMES)}


def build_input_names(keys: Iterable[dg.AssetKey]) -> dict[str, dg.AssetKey]:
    """Return a unique Dagster input name for each asset key. The names are not shown anywhere."""
    return {f"upstream_{number}": key for number, key in enumerate(sorted(keys))}


def build_run_id(root_run_id: str, partition: str | None = None, number: int = 1) -> str:
    """Return the Airflow run id of a trigger: the same in every re-execution of a Dagster run.

    Airflow keeps run ids unique per DAG, which makes triggers idempotent.

    Args:
        partition: The partition key, if the DAG is partitioned.
        number: Above 1 for another DAG run that replaces a failed one (`on_retry: new_run`).
    """
    parts = [root_run_id]
    if partition is not None:
        # Airflow 3 allows only `[A-Za-z0-9_.~:+-]` in run ids.
        parts.append(quote(partition, safe="+:").replace("%", "~"))
    if number > 1:
        parts.append(f"retry_{number}")
    return RUN_ID_PREFIX + "__".join(parts)


def is_of_target(run_id: str, first_run_id: str) -> bool:
    """Whether a run id belongs to a target, as its first one or a later one (`…__retry_2`)."""
    return run_id == first_run_id or run_id.startswith(f"{first_run_id}__retry_")


def parse_root_run_id(run_id: str) -> str | None:
    """Return the id of the root Dagster run that triggered an Airflow run; None if Dagster did not
    trigger it."""
    rest = run_id.removeprefix(RUN_ID_PREFIX)
    return rest.split("__", 1)[0] if rest != run_id else None


def build_detached_tag(instance: str) -> str:
    """Return the tag that names the DAG runs which a Dagster run will not report."""
    return f"federation/no_longer_waits_for.{instance}"


def build_plan_tag(instance: str) -> str:
    """Return the tag that names the DAG runs which a Dagster run has adopted, or is about to clear
    or replace."""
    return f"federation/runs_again.{instance}"


def build_dag_run_tag(instance: str, dag_id: str) -> str:
    """Return the tag of a Dagster run that holds the run id of a DAG run."""
    return f"federation/dag_run.{instance}.{dag_id}"


def build_request_tag(instance: str, dag_id: str) -> str:
    """Return the tag that holds the events for which a Dagster run starts a DAG, and how."""
    return f"federation/request.{instance}.{dag_id}"


def build_cause_tag(instance: str, dag_id: str) -> str:
    """Return the tag that names the upstream run for which a Dagster run starts a DAG."""
    return f"federation/after.{instance}.{dag_id}"


def build_alive_tag(instance: str) -> str:
    """Return the tag of a Dagster run that holds the last heartbeat of a step of this instance."""
    return f"federation/alive_at.{instance}"


def build_launching_tags(instance: str) -> dict[str, str]:
    """Return the tags of a Dagster run that triggers DAGs of this instance."""
    return {f"federation/waits_for.{instance}": "true"}


def build_tag_key(airflow_tag: str) -> str:
    """Return an Airflow tag as a Dagster tag key: at most 63 characters of `[A-Za-z0-9_.-]`. For an
    empty tag, which Airflow allows, return "", which is not a valid key."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", airflow_tag)[:63]


def build_owner(airflow_owner: str) -> str:
    """Return an Airflow owner as a Dagster owner: an e-mail address, or a team."""
    # Dagster's own pattern (1.13): an invalid owner would fail the whole code location.
    is_email = re.fullmatch(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", airflow_owner)
    return airflow_owner if is_email else f"team:{airflow_owner}"
