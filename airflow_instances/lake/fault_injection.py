"""Makes DAGs slow or failing on request, for demonstrations and tests.

Two Airflow Variables per DAG, read when a task runs. A Variable that is not set has no effect.

- `<dag_id>__seconds`: the task takes at least this many seconds.
- `<dag_id>__fail`: "true" makes the task fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


def sleep_if_requested(dag_id: str, read_variable: Callable[[str], str | None]) -> None:
    """Sleep for `<dag_id>__seconds`. Call it without a connection to the lake open."""
    name = f"{dag_id}__seconds"
    seconds = read_variable(name)
    if seconds is not None:
        log.info("The Variable %s asks this task to take %s s", name, seconds)
        time.sleep(float(seconds))


def fail_if_requested(dag_id: str, read_variable: Callable[[str], str | None]) -> None:
    """Fail if `<dag_id>__fail` is "true".

    Raises:
        ValueError: It is.
    """
    name = f"{dag_id}__fail"
    if (read_variable(name) or "").lower() == "true":
        raise ValueError(f"{dag_id} fails because the Variable {name} is 'true'. Delete it.")
