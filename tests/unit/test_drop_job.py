from __future__ import annotations

import dagster as dg

from federation_defs.dependencies.sensor import build_drop_job


def test_the_jobs_that_drop_what_waits_load_beside_each_other() -> None:
    """A job and an op must not share a name, nor must two ops (Dagster 1.13)."""
    jobs = [build_drop_job(name, ["some_dag"]) for name in ("metrics", "warehouse")]
    dg.Definitions.validate_loadable(dg.Definitions(jobs=jobs))
