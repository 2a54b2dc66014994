"""Measures one task of one client in a process of its own, and prints the figures as JSON."""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

USERNAME, PASSWORD = "federation", "bench-only"
HTTP = {"max_requests_per_minute": 100_000}  # the rate limit is not measured


def build_ours(url: str) -> dict[str, Callable[[], list[Any]]]:
    from federation_defs import build_airflow_instance
    from federation_defs.airflow.client import build_client
    from federation_defs.declaration import InstanceDeclaration

    auth = {"type": "basic", "username": USERNAME, "password": PASSWORD}
    declared: dict[str, Any] = {"name": "bench", "url": url, "auth": auth, "http": HTTP}
    client = build_client(InstanceDeclaration.model_validate(declared), "the benchmark")
    a_week_ago = datetime.now(timezone.utc) - timedelta(days=7)
    return {
        "dags": client.fetch_dags,
        "runs": lambda: client.fetch_changed_runs(a_week_ago).entries,
        "sources": lambda: load_sources(build_airflow_instance(**declared)),
    }


def build_peers(url: str) -> dict[str, Callable[[], list[Any]]]:
    from dagster_airlift.core import AirflowBasicAuthBackend, AirflowInstance

    account = {"username": USERNAME, "password": PASSWORD}
    airlift = AirflowInstance(
        auth_backend=AirflowBasicAuthBackend(webserver_url=url, **account), name="bench"
    )

    def read_runs() -> list[Any]:
        """Fetch page by page, as airlift's sensor does."""
        found: list[Any] = []
        total = 1
        while len(found) < total:
            runs, total = airlift.get_dag_runs_batch(["dag_00000"], offset=len(found))
            found += runs
        return found

    return {
        "dags": airlift.list_dags,
        "runs": read_runs,
        "sources": lambda: load_sources(airlift),
    }


def load_sources(airlift: Any) -> list[Any]:
    """Return the specs that have their source, from airlift's own function."""
    from dagster_airlift.core import load_airflow_dag_asset_specs

    specs = load_airflow_dag_asset_specs(airlift, source_code_retrieval_enabled=True)
    return [spec for spec in specs if "Source Code" in spec.metadata]


CONTENDERS = {"ours": build_ours, "airlift": build_peers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("what", choices=["dags", "runs", "sources"])
    parser.add_argument("url")
    parser.add_argument("--memory", action="store_true", help="measure memory, not seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore", dg.BetaWarning)
    fetch = CONTENDERS[options.contender](options.url)[options.what]
    import dagster_airlift.core  # noqa: F401 - loaded by both, so that imports don't count

    if options.memory:
        tracemalloc.start()
    began = time.perf_counter()
    found = fetch()
    figures = {"count": len(found), "seconds": time.perf_counter() - began}
    if options.memory:
        figures["peak_mb"] = tracemalloc.get_traced_memory()[1] / 2**20
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
