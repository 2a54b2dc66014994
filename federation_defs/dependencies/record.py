"""The upstream event that users' code gets, and the answers of an `only_if` function.

This module imports little, because a new process imports it for each call of such a function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class UpstreamEvent:
    """An event of a DAG's upstream. All times are aware and in UTC.

    Attributes:
        upstream: The DAG, as instance/dag_id, or the key of the Dagster asset, with slashes.
        downstream: The DAG that depends on it, as instance/dag_id.
        state: A run succeeded ("success") or failed ("failure"); a run has been running for longer
            than the DAG's `max_duration` ("slow"); or no run has succeeded by its `deadline`
            ("late"). A materialization of an asset is a success.
        run_id: The Airflow run id, or for an asset the id of the Dagster run that materialized it.
            None for late, and for a materialization outside of a run.
        logical_date: The DAG run's logical date. In Airflow 3 a run may have none.
        data_interval_start, data_interval_end: The DAG run's data interval.
        partition_key: The partition of the event in Dagster.
        start: When the DAG run started; None if Airflow has no start.
        end: When the DAG run ended, or the asset was materialized. None for slow and late.
        deadline: For late: the deadline that was missed.
        conf: The conf of the DAG run as Dagster shows it: with `***` in place of secrets, and empty
            if it has more than 10,000 characters.
        link: The address of the DAG run in Airflow's UI.
    """

    upstream: str
    downstream: str
    state: Literal["success", "failure", "late", "slow"]
    run_id: str | None = None
    logical_date: datetime | None = None
    data_interval_start: datetime | None = None
    data_interval_end: datetime | None = None
    partition_key: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    deadline: datetime | None = None
    conf: Mapping[str, Any] = field(default_factory=dict, repr=False)
    link: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values: times in ISO 8601, with their offset."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        times = {
            name: value.isoformat() for name, value in values.items() if isinstance(value, datetime)
        }
        return {**values, **times, "conf": dict(self.conf)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> UpstreamEvent:
        """Return the event from the result of `to_json`."""
        times = {
            name: datetime.fromisoformat(values[name])
            for name in _TIMES
            if values.get(name) is not None
        }
        return cls(**{**values, **times})


_TIMES = ("logical_date", "data_interval_start", "data_interval_end", "start", "end", "deadline")


@dataclass(frozen=True)
class Run:
    """An answer of an `only_if` function: start a run of the DAG.

    Args:
        conf: The conf of the run, of JSON values; None for `trigger.conf`.

    Raises:
        TypeError: The conf is not a dict, or has a value that is not a JSON value.
        ValueError: The conf contains nan or an infinite number.
    """

    conf: dict[str, Any] | None = field(default=None, repr=False)  # it may hold secrets

    def __post_init__(self) -> None:
        if not isinstance(self.conf, dict | None):
            raise TypeError(f"Run(conf): the conf is a {type(self.conf).__name__}; pass a dict")
        json.dumps(self.conf, allow_nan=False)


@dataclass(frozen=True)
class Skip:
    """An answer of an `only_if` function: start no run for the event.

    Args:
        reason: Shown in Dagster, on the DAG's asset.

    Raises:
        TypeError: The reason is not a str.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise TypeError(f"Skip(reason): reason is a {type(self.reason).__name__}; pass a str")


Decision: TypeAlias = Run | Skip
