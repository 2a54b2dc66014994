"""What ending a Dagster run does to the DAG runs that it started."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.run_tags import CurrentRun
from federation_defs.declaration import DagDeclaration
from federation_defs.errors import AirflowError
from federation_defs.execution.launcher import Launcher
from federation_defs.execution.reporter import Reporter

_log = logging.getLogger(__name__)

STATUS_S = 2.0

STARTED_S = 30.0

# How long the run's status is asked for once the main thread has ended.
GRACE_S = 30.0

_CANCELED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)

_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE)


class CancellationWatcher:
    """Stops the DAG runs of a Dagster run that is canceled.

    In a thread that outlives the main one, and by the run's status in Dagster: the signal by which
    Dagster (1.13) tells a worker is raised in the main thread wherever that is. While an event of
    ours is being stored it ends the step without a word to us, and a second signal would end the
    stopping itself.
    """

    def __init__(
        self,
        client: AirflowClient,
        current_run: CurrentRun,
        dags: Mapping[str, DagDeclaration],
        launcher: Launcher,
        reporter: Reporter,
    ) -> None:
        self._client = client
        self._current_run = current_run
        self._dags = dags
        self._launcher = launcher
        self._reporter = reporter
        self._wake = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._watch, name="stopper")
        self._thread.start()

    def stop_if_canceled(self, timeout_s: float) -> bool:
        """Whether the run is canceled; its DAG runs are stopped by then, or in a while."""
        if self._current_run.fetch_status() not in _CANCELED:
            return False
        self._wake.set()
        self._thread.join(timeout_s)
        return True

    def close(self) -> None:
        """Ends the watch: nothing is left to be stopped."""
        self._is_closed = True
        self._wake.set()

    def _watch(self) -> None:
        until = None
        while until is None or time.monotonic() < until:
            self._wake.wait(STATUS_S)
            if self._is_closed:
                return
            if until is None and not threading.main_thread().is_alive():
                until = time.monotonic() + GRACE_S
            try:
                status = self._current_run.fetch_status()
            except Exception:  # noqa: BLE001 whatever the database says: it may be back
                _log.warning("Whether the run is canceled can't be told.", exc_info=True)
                self._wake.clear()
                continue
            if status in _CANCELED:
                self._stop()
                return
            if status in _OVER:
                return
            self._wake.clear()

    def _stop(self) -> None:
        # One after the other: no pool starts a thread once the main one has ended.
        for target, run_id in self._launcher.stop(STARTED_S).items():
            if self._dags[target.dag_id].trigger.on_cancel == "leave":
                self._reporter.log_left_running(target, run_id)
                continue
            try:
                answer = self._client.stop_run(target.dag_id, run_id)
            except AirflowError as error:
                answer = error
            self._reporter.log_canceled(target, run_id, answer)
