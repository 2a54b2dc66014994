"""How busy the machine was with other things while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

MAX_OTHERS = 0.3  # cores


@dataclass(frozen=True)
class Load:
    """The load of a time.

    Attributes:
        average: The machine's load average of the last minute.
        others: Cores that were busy with processes that this one did not start.
        stolen: Cores that the machine's host gave to other machines.
    """

    average: float
    others: float
    stolen: float

    @property
    def is_too_high(self) -> bool:
        """Whether what was measured has to be measured again."""
        return self.others + self.stolen > MAX_OTHERS

    def __str__(self) -> str:
        text = f"load {self.average:.1f}, others {self.others:.2f}, steal {self.stolen:.2f}"
        return f"{text}: REPEAT" if self.is_too_high else text


class LoadMeter:
    """Measures the load from its creation on."""

    def __init__(self) -> None:
        self._before = _read()

    def read(self) -> Load:
        began, before = self._before
        ended, now = _read()
        busy, own, stolen = (
            (new - old) / max(ended - began, 0.01) for old, new in zip(before, now, strict=True)
        )
        return Load(os.getloadavg()[0], max(0.0, busy - own), stolen)


def _read() -> tuple[float, tuple[float, float, float]]:
    """Return the time, and the CPU seconds until then: of all, of our processes, stolen."""
    here = psutil.Process()
    own = read_cpu_s([here, *here.children(recursive=True)])
    times = psutil.cpu_times()._asdict()  # which of them there are depends on the platform
    busy = sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return time.monotonic(), (busy, own, times.get("steal", 0.0))


def read_cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds of processes, with those of their children that have ended."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
