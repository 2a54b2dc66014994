"""Stops the DAG runs of a Dagster run that is canceled."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from contextlib import suppress

import dagster as dg

from federation_defs.errors import AirflowError, RunLostError
from federation_defs.execution.launcher import Launcher, StepContext

_log = logging.getLogger(__name__)

_CANCELED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
_UNKNOWN = "Could not read whether Dagster run %s is canceled."
_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, None)  # None: it was deleted


class CancellationMonitor:
    """Stops the DAG runs of a step when its Dagster run is canceled.

    It polls the status in a thread that outlives the main thread, because the main thread may be
    unable to stop them. Dagster (1.13) cancels a worker by a signal that raises an exception in the
    main thread, at any place. While Dagster stores an event, the signal ends the step without
    closing it. A second signal would interrupt the stopping.
    """

    def __init__(self, context: StepContext, launcher: Launcher) -> None:
        self._context = context
        self._launcher = launcher
        self._wake = threading.Event()
        self._is_closed = self._is_kept = False
        self._close_step: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._poll_status, name="cancellation")
        self._thread.start()

    def stop_if_canceled(self) -> bool | None:
        """Return whether the Dagster run is canceled, or None if its status can't be read.

        If the run is canceled, this returns after the DAG runs were stopped, or after
        `timing.cancel_s`. Unless it is known not to be canceled, the thread polls on after `close`.
        """
        self._is_kept = True  # a second signal may end this method
        try:
            status = self._context.current_run.fetch_status()
        except Exception:  # noqa: BLE001 - as in `_poll_status`
            _log.warning(_UNKNOWN, self._context.current_run.run_id, exc_info=True)
            return None
        if status not in _CANCELED:
            self._is_kept = False
            return False
        self._wake.set()
        self._thread.join(self._context.timing.cancel_s)
        return True

    def keep(self, close_step: Callable[[], object]) -> None:
        """Refuse further launches, and let the thread close the step and poll on.

        It polls until it reads that the Dagster run has ended, is canceled or was deleted, or until
        `timing.after_main_s` after the end of the main thread. This method takes no lock.
        """
        self._is_kept, self._close_step = True, close_step
        self._launcher.refuse()

    def close(self) -> None:
        """Refuse further launches, and end the thread, unless it has to poll on."""
        self._launcher.refuse()
        self._is_closed = not self._is_kept
        self._wake.set()

    def _poll_status(self) -> None:
        timing, until = self._context.timing, math.inf
        while timing.monotonic() < until:
            self._wake.wait(timing.status_s)
            if self._is_closed:
                return
            if self._close_step is not None:
                self._close_step()
                self._close_step = None
            if until == math.inf and not threading.main_thread().is_alive():
                until = timing.monotonic() + timing.after_main_s
                self._launcher.refuse()  # Dagster may have ended the step without closing it
            self._wake.clear()
            try:
                status = self._context.current_run.fetch_status()
            except Exception:  # noqa: BLE001 - any database's; the next poll may succeed
                _log.warning(_UNKNOWN, self._context.current_run.run_id, exc_info=True)
                continue
            if status in _CANCELED:
                self._stop_dag_runs()
            if status in (*_CANCELED, *_ENDED):
                self._launcher.refuse()  # as above
                return

    def _stop_dag_runs(self) -> None:
        client, log = self._context.client, self._context.log
        # One after the other: a pool can't start threads after the main thread has ended.
        stopped = []
        for target, run_id in self._launcher.stop().items():
            name = target.name
            if self._context.dags[target.dag_id].trigger.on_cancel == "leave":
                log.info(f"{name}: run {run_id} is not stopped (`trigger.on_cancel: leave`).")
                continue
            try:
                run = client.stop_run(target.dag_id, run_id)
            except RunLostError:  # it was never started
                continue
            except AirflowError as error:
                url = client.build_run_url(target.dag_id, run_id)
                log.error(f"{error} Run {run_id} of DAG {name} may stay active: {url}")
                continue
            ending = "was stopped" if run.is_finished else "is stopping, and cleans up"
            log.info(f"{name}: run {run_id} {ending}: {run.state}.")
            if not run.is_success:
                stopped.append(run.key)
        if stopped:
            timing = self._context.timing
            timing.sleep(timing.repeat_stop_s)
        for key in stopped:
            with suppress(AirflowError):
                client.stop_run(*key, again=True)
