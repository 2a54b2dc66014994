"""One tick of the observation sensor, and whether it may store events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from federation_defs.dagster_io.code_locations import fetch_sensor_cursor, refuse_second_location
from federation_defs.naming import build_sensor_name
from federation_defs.observation.cursor import Cursor
from federation_defs.timing import Timing


@dataclass(frozen=True)
class Tick:
    """What Dagster passes to a tick, and which process evaluates it.

    Attributes:
        instance: The Dagster instance. All ticks of the process share it.
        airflow: The Airflow instance's name.
        log: Opens and returns the tick's log.
        observer: The id of this process, as in `Cursor.observer`.
        cursor: None if Dagster has stored none.
        location: The name of the code location; None in tests.
    """

    instance: dg.DagsterInstance
    airflow: str
    timing: Timing
    log: Callable[[], logging.Logger]
    observer: str = ""
    cursor: str | None = None
    location: str | None = None

    def is_current(self) -> bool:
        """Whether this process still observes the instance: the code server may have been replaced
        during the tick."""
        if self.location is None:
            return True
        name = build_sensor_name(self.airflow, "observation")
        stored = fetch_sensor_cursor(self.instance, name, self.location)
        cursor = Cursor.from_json(stored, self.timing.utc_now())
        return cursor is not None and cursor.observer == self.observer

    def refuse_second_location(self) -> None:
        """Raise an error if another code location observes the Airflow instance.

        Raises:
            DeclaredTwiceError: Another code location does.
        """
        refuse_second_location(self.instance, self.airflow, self.location, self.timing)

    def may_store(self) -> bool:
        """Whether this process may store events, as no other one observes the instance.

        Raises:
            DeclaredTwiceError: Another code location does.
        """
        self.refuse_second_location()
        return self.is_current()
