"""The one maker of asset keys, run ids and names: what is made here is never spelled elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from urllib.parse import quote

import dagster as dg

RUN_ID_PREFIX = "dagster__"
ALIVE_TAG = "federation/alive_at"
CHECK_NAME = "dag_run"
_LEFT = ", not waited for: "


def build_asset_key(instance: str, dag_id: str) -> dg.AssetKey:
    """The asset key of a DAG: `[instance, "dag", dag_id]`.

    The DAG id stands as it is. (dagster-airlift writes `_` for characters outside `[A-Za-z0-9_]`,
    which makes `a-b` and `a.b` one key.)
    """
    return dg.AssetKey([instance, "dag", dag_id])


def build_dag_id(instance: str, key: dg.AssetKey) -> str | None:
    """The DAG id behind an asset key, or None if the key is not one of this instance's DAGs."""
    match key.path:
        case [owner, "dag", dag_id] if owner == instance:
            return dag_id
    return None


def build_check_key(key: dg.AssetKey) -> dg.AssetCheckKey:
    """Of the asset check that every DAG has."""
    return dg.AssetCheckKey(key, CHECK_NAME)


def build_checks_name(instance: str) -> str:
    """The name of the op that asks how an instance's DAGs are doing, when a person executes it."""
    return f"{instance}__checks"


def build_observation_sensor_name(instance: str) -> str:
    return f"{instance}__observation"


def build_automation_sensor_name(instance: str) -> str:
    return f"{instance}__automation"


def build_execution_name(instance: str) -> str:
    """The name of the op (and so the step) that triggers an instance's DAGs."""
    return f"{instance}__dags"


def build_output_names(dag_ids: list[str]) -> dict[str, str]:
    """A valid and unique Dagster output name for each DAG id.

    Dagster admits only `[A-Za-z0-9_]` in output names; a DAG id may also hold `.`, `-` and any
    letter of any alphabet.
    """
    names: dict[str, str] = {}
    for dag_id in sorted(dag_ids):
        name = plain = re.sub(r"[^A-Za-z0-9_]", "_", dag_id)
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}__{number}"
        names[dag_id] = name
    return names


def build_input_names(keys: Iterable[dg.AssetKey]) -> dict[str, dg.AssetKey]:
    """Dagster input names, which are never seen: any that are valid and unique."""
    return {f"upstream_{number}": key for number, key in enumerate(sorted(keys))}


def build_run_id(root_run_id: str, partition: str | None = None, number: int = 1) -> str:
    """The Airflow run id of a trigger: the same for every re-execution of one Dagster run.

    Airflow keeps run ids unique per DAG, so that a trigger that is repeated finds its own run.

    Args:
        partition: The partition's key, if the DAG is partitioned.
        number: Above 1 if a re-execution started anew what had failed (`on_retry: new_run`).
    """
    parts = [root_run_id]
    if partition is not None:
        # Airflow 3 takes no other characters than these in run ids.
        parts.append(quote(partition, safe="+:").replace("%", "~"))
    if number > 1:
        parts.append(f"retry_{number}")
    return RUN_ID_PREFIX + "__".join(parts)


def parse_root_run_id(run_id: str) -> str | None:
    """The Dagster run behind an Airflow run id, or None if Dagster did not trigger it."""
    rest = run_id.removeprefix(RUN_ID_PREFIX)
    return rest.split("__", 1)[0] if rest != run_id else None


def build_detached_tag(instance: str) -> str:
    """The tag that names the DAGs which a Dagster run waits for no longer, though they go on."""
    return f"federation/no_longer_waits_for.{instance}"


def build_plan_tag(instance: str) -> str:
    """The tag that says which runs a Dagster run is about to have run again."""
    return f"federation/runs_again.{instance}"


def build_dag_run_tag(instance: str, dag_id: str) -> str:
    """The tag of a Dagster run by which a person finds the DAG run, and it by the DAG run."""
    return f"federation/dag_run.{instance}.{dag_id}"


def build_pool_name(instance: str) -> str:
    """Of the Dagster concurrency pool whose slots are DAG runs of this instance."""
    return f"{instance}__dag_runs"


def build_slot_key(instance: str, name: str, *, is_detached: bool = False) -> str:
    """The step key by which a slot of that pool is held, as a person reads it in Dagster.

    It begins with a digest, because MySQL tells two apart by their first 32 letters only (dagster
    1.13).

    Args:
        name: Of a DAG, or of one of its partitions.
        is_detached: It is the slot of a run that is not waited for.
    """
    key = f"{build_pool_name(instance)}{_LEFT if is_detached else ': '}{name}"
    return f"{blake2b(key.encode(), digest_size=4).hexdigest()} {key}"


def parse_left_dag_id(slot_key: str) -> str | None:
    """The DAG whose run, which is not waited for, has the slot; None if it is no such slot."""
    _, is_detached, dag_id = slot_key.partition(_LEFT)
    return dag_id if is_detached else None


def build_monitor_tags(instance: str) -> dict[str, str]:
    """The tags of a Dagster run that triggers DAGs of this instance, and waits for them."""
    return {f"federation/waits_for.{instance}": "true"}


def build_tag_key(airflow_tag: str) -> str:
    """An Airflow tag as a Dagster tag key: 63 characters at most, of `[A-Za-z0-9_.-]`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", airflow_tag)[:63]


def build_owner(airflow_owner: str) -> str:
    """An Airflow owner as Dagster takes them: an e-mail address, or a team."""
    # As strict as Dagster is: what it does not take for an address would fail the whole location.
    is_email = re.fullmatch(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", airflow_owner)
    return airflow_owner if is_email else f"team:{airflow_owner}"
