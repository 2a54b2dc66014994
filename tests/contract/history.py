"""Events of assets in a Dagster instance, stored by a test as steps and daemons store them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import dagster as dg
from dagster._core.events import AssetObservationData, StepMaterializationData

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


def report_in(instance: dg.DagsterInstance, run: dg.DagsterRun | None, event: Event) -> None:
    """Store an event of a Dagster run, or of none."""
    if run is None:
        instance.report_runless_asset_event(event)
    elif isinstance(event, dg.AssetMaterialization):
        log(instance, run, "ASSET_MATERIALIZATION", StepMaterializationData(event))
    elif isinstance(event, dg.AssetObservation):
        log(instance, run, "ASSET_OBSERVATION", AssetObservationData(event))
    else:
        log(instance, run, "ASSET_CHECK_EVALUATION", event)


def log(
    instance: dg.DagsterInstance, run: dg.DagsterRun, event_type: str, data: Any = None
) -> None:
    event = dg.DagsterEvent(event_type, run.job_name, event_specific_data=data)
    instance.report_dagster_event(event, run.run_id)


class RunHistory:
    """An instance in memory, and Dagster runs of some definitions that a test moves on."""

    def __init__(self, defs: dg.Definitions) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.job = defs.resolve_implicit_global_asset_job_def()

    def start(self, keys: Collection[dg.AssetKey]) -> dg.DagsterRun:
        return self.instance.create_run_for_job(
            self.job, asset_selection=frozenset(keys), status=dg.DagsterRunStatus.STARTED
        )

    def report(self, event: Event, run: dg.DagsterRun | None = None) -> None:
        report_in(self.instance, run, event)

    def finish(self, run: dg.DagsterRun, *, is_success: bool) -> None:
        if is_success:
            log(self.instance, run, "PIPELINE_SUCCESS")
        else:
            self.instance.report_run_failed(run)
