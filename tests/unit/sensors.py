"""Sensors as Dagster's daemon stores them."""

from __future__ import annotations

import dagster as dg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo


def store_sensor(
    instance: dg.DagsterInstance,
    location: str,
    name: str,
    data: SensorInstigatorData,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
) -> RemoteInstigatorOrigin:
    """Store a sensor of a code location, or what has changed of it."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
    origin = RemoteInstigatorOrigin(repository, name)
    state = InstigatorState(origin, InstigatorType.SENSOR, status, data)
    if instance.get_instigator_state(origin.get_id(), state.selector_id):
        instance.update_instigator_state(state)
    else:
        instance.add_instigator_state(state)
    return origin


def store_tick(
    instance: dg.DagsterInstance, origin: RemoteInstigatorOrigin, status: TickStatus, at: float
) -> None:
    """Store a tick of a sensor."""
    error = SerializableErrorInfo("why", [], None) if status == TickStatus.FAILURE else None
    instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name=origin.instigator_name,
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=at,
            selector_id=origin.get_selector().get_id(),
            run_ids=[],
            error=error,
        )
    )
