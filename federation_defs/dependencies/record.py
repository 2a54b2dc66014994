"""What happened upstream, as code of users gets it, and what that code answers.

This module imports little, because a process that starts for each question does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class UpstreamEvent:
    """What happened to an upstream of a DAG. All times are aware and in UTC.

    Attributes:
        upstream: The DAG, as instance/dag_id, or the key of the Dagster asset, with slashes.
        downstream: The DAG that depends on it, as instance/dag_id.
        state: That a run succeeded or failed; that a run goes on for longer than the DAG's
            `max_duration` (slow); or that none has succeeded by its `deadline` (late). A
            materialization of an asset is a success.
        run_id: The Airflow run id, or for an asset the id of the Dagster run that materialized it.
            None for late, and for a materialization outside of a run.
        logical_date: Of the DAG run. In Airflow 3 a run may have none.
        data_interval_start, data_interval_end: Of the DAG run.
        partition_key: Of the materialization in Dagster.
        start: When the DAG run started, if Airflow says so.
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
        """Return the attributes as values that JSON has: times in ISO 8601, with their offset."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        times = {
            name: value.isoformat() for name, value in values.items() if isinstance(value, datetime)
        }
        return {**values, **times, "conf": dict(self.conf)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> UpstreamEvent:
        """Return the event of which `to_json` returned these values."""
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
        conf: The conf of the run, in place of `trigger.conf`; None for that. Values that JSON has.

    Raises:
        TypeError: The conf is no dict, or has a value of a type that JSON does not have.
        ValueError: The conf has nan or an infinite number.
    """

    conf: dict[str, Any] | None = field(default=None, repr=False)  # it may hold secrets

    def __post_init__(self) -> None:
        if not isinstance(self.conf, dict | None):
            raise TypeError(f"Run(conf): the conf is a {type(self.conf).__name__}; pass a dict")
        json.dumps(self.conf, allow_nan=False)


@dataclass(frozen=True)
class Skip:
    """An answer of an `only_if` function: what happened starts no run.

    Args:
        reason: Shown in Dagster, on the DAG's asset.

    Raises:
        TypeError: The reason is no text.
    """

    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str):
            raise TypeError(f"Skip(reason): it is a {type(self.reason).__name__}; pass a text")


Decision: TypeAlias = Run | Skip
