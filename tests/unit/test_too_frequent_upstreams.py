"""Upstreams whose partitions come too often for a DAG that looks at the latest only."""

from __future__ import annotations

from typing import Any

from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.observation.partitions_check import find_too_frequent_upstreams

DAILY: dict[str, Any] = {"partitions": {"cron": "0 0 * * *", "start": "2026-01-01"}}
HOURLY: dict[str, Any] = {"partitions": {"cron": "@hourly", "start": "2026-01-01"}}
BERLIN = {"partitions": {**DAILY["partitions"], "timezone": "Europe/Berlin"}}
UPSTREAMS = InstanceDeclaration.model_validate(
    {
        "name": "up",
        "url": "http://127.0.0.1:1",
        "auth": {"type": "none"},
        "dags": {"daily": DAILY, "hourly": HOURLY, "berlin": BERLIN, "plain": {}},
    }
)


def find_too_frequent(*upstreams: str, **declared: Any) -> str | None:
    """Return what does not fit a DAG with these upstreams."""
    dag = DagDeclaration.model_validate({"depends_on": upstreams, **declared})
    return find_too_frequent_upstreams({"below": dag}, {"up": UPSTREAMS}).get("below")


def test_a_dag_that_runs_once_for_each_of_several_cadences_looks_at_the_latest_only() -> None:
    together: dict[str, Any] = {"trigger": {"when": "all"}}
    for upstreams in (["up/daily", "up/hourly"], ["up/hourly", "up/daily"]):
        assert find_too_frequent(*upstreams, **together) == (
            "With `when: all` and without `partitions`, a run for each tick of `0 0 * * *` looks "
            "only at the latest partition of up/hourly (`@hourly`). If it needs all of them, "
            "declare `partitions` of the DAG."
        )
        assert find_too_frequent(*upstreams) is None
    assert find_too_frequent("up/hourly", "up/plain", **together) is None
    assert find_too_frequent("up/daily", "up/berlin", **together) is None
    assert find_too_frequent("up/unknown", "nowhere/x", **together) is None


def test_a_partition_that_needs_the_last_one_of_several_looks_at_that_only() -> None:
    assert find_too_frequent("up/hourly", "up/berlin", **DAILY, granularity="last") == (
        "With `granularity: last`, a partition for each tick of `0 0 * * *` looks only at the "
        "latest partition of up/hourly (`@hourly`). If it needs all of them, write "
        "`granularity: all`."
    )
    assert find_too_frequent("up/hourly", **DAILY) is None
    assert find_too_frequent("up/hourly", **DAILY, granularity="any") is None
    assert find_too_frequent("up/daily", "up/hourly", **HOURLY, granularity="last") is None
