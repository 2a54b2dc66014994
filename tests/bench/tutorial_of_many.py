"""Airlift's definitions for `execute`: dagster-airlift's tutorial for one Airflow with many DAGs.

Two settings differ from the tutorial, to make it comparable: the time-out of 30 s, and the limit of
as many concurrent steps as there are cores.
"""

from __future__ import annotations

import dagster as dg
from dagster_airlift.core import load_airflow_dag_asset_specs

from tests.bench.tutorial import UPSTREAM, build_instance, build_runner

DAY_S = 86400


@dg.definitions
def defs() -> dg.Definitions:
    metrics = build_instance("metrics")
    # In one call: a second one with another selector would return the cached result of the first.
    specs = {spec.key.path[-1]: spec for spec in load_airflow_dag_asset_specs(metrics)}
    upstream = specs.pop(UPSTREAM)
    runners = [
        build_runner(metrics, dag_id, spec.replace_attributes(deps=[upstream]), DAY_S)
        for dag_id, spec in specs.items()
    ]
    unlimited = dg.multiprocess_executor.configured({"max_concurrent": len(runners)})
    return dg.Definitions([upstream, *runners], executor=unlimited)
