"""The peer's definitions for `execute`: dagster-airlift's tutorial for one Airflow with many DAGs.

Two things are not as published, for nothing could be compared otherwise: its time-out of 30 s, and
that it would wait for no more DAGs at a time than there are cores.
"""

from __future__ import annotations

import dagster as dg
from dagster_airlift.core import load_airflow_dag_asset_specs

from tests.bench.tutorial import UPSTREAM, build_instance, build_runner

A_DAY = 86400


@dg.definitions
def defs() -> dg.Definitions:
    metrics = build_instance("metrics")
    # In one call: a second one, with another selector, would be given what the first one found.
    specs = {spec.key.path[-1]: spec for spec in load_airflow_dag_asset_specs(metrics)}
    upstream = specs.pop(UPSTREAM)
    runners = [
        build_runner(metrics, dag_id, spec.replace_attributes(deps=[upstream]), A_DAY)
        for dag_id, spec in specs.items()
    ]
    everything_at_once = dg.multiprocess_executor.configured({"max_concurrent": len(runners)})
    return dg.Definitions([upstream, *runners], executor=everything_at_once)
