"""What is told of a time in which nobody looked, and that is too long ago to be looked at. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import dagster as dg


def describe_gap(airflow: str, begin: datetime, end: datetime) -> str:
    return (
        f"What ended in Airflow '{airflow}' between {begin:%F %T} and {end:%F %T} UTC was not "
        "looked at: nobody observed it then, and `observe.lookback` reaches back no further."
    )


def build_gap(
    told: str, keys: Sequence[dg.AssetKey], begin: datetime, end: datetime
) -> list[dg.AssetObservation]:
    """The gap as an observation of each asset."""
    metadata = {
        "Gap": dg.MetadataValue.text(told),
        "Gap start": dg.MetadataValue.timestamp(begin),
        "Gap end": dg.MetadataValue.timestamp(end),
    }
    return [dg.AssetObservation(key, description=told, metadata=metadata) for key in keys]
