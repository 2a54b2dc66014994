"""Slowness and failure on request, so that a demo or a test can show what comes of them.

Two Airflow Variables per DAG, set while everything runs; without them nothing happens:

- `<dag_id>__seconds`: its work takes at least that long.
- `<dag_id>__fail`: "true" makes its work fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


def take_time(dag_id: str, read_variable: Callable[[str], str | None]) -> None:
    """Returns after `<dag_id>__seconds`. Call it without a hold on the lake: others need it."""
    name = f"{dag_id}__seconds"
    seconds = read_variable(name)
    if seconds is not None:
        log.info("The Variable %s asks this task to take %s s", name, seconds)
        time.sleep(float(seconds))


def fail_if_asked(dag_id: str, read_variable: Callable[[str], str | None]) -> None:
    """Nothing, unless `<dag_id>__fail` is "true".

    Raises:
        ValueError: It is.
    """
    name = f"{dag_id}__fail"
    if (read_variable(name) or "").lower() == "true":
        raise ValueError(f"{dag_id} fails because the Variable {name} is 'true'. Delete it.")
