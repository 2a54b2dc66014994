"""Runs the demo's processes with honcho, and leaves none behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
from honcho.manager import Manager
from honcho.printer import Message, Printer


class ProcessRunner(Manager):
    """Runs all processes until it is asked to end, or one of them ends by itself.

    honcho ends the process group of each. Airflow runs every task in a group of its own, so
    those are looked for by their session: honcho starts each process in a new one, and what a
    process starts stays in it, even when its parent dies.

    Attributes:
        ended_first: Process that ended by itself -> its exit code.
    """

    def __init__(self) -> None:
        super().__init__(_QuietPrinter(prefix=False))
        self.ended_first: dict[str, int] = {}
        self._noted: set[psutil.Process] = set()

    def run(self) -> None:
        """Starts all; returns when all have ended, with everything they started.

        Whoever has not ended 5 s after the first is killed.
        """
        try:
            self.loop()
        finally:
            kill_processes(self._noted | self._find_all())

    def terminate(self) -> None:
        """Asks everything to end; honcho then waits, and makes its process groups end."""
        if not self._all_started():
            # honcho does not know yet what to end: once more, when it has had time to learn it.
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return
        if not self._terminating:
            self.ended_first = {
                name: process["returncode"]
                for name, process in self._processes.items()
                if process.get("returncode") is not None
            }
            # Now, while all parents live: a task's own child may be in yet another session.
            self._noted = self._find_all()
            # The tasks too, since a scheduler waits for its own before it ends.
            for process in self._noted:
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    if os.getpgid(process.pid) not in self._sessions():
                        process.terminate()
        super().terminate()

    def _sessions(self) -> set[int]:
        """The ids of the sessions honcho started; the process groups it ends have the same."""
        return {process["pid"] for process in self._processes.values() if "pid" in process}

    def _find_all(self) -> set[psutil.Process]:
        """What runs of the processes and all they started."""
        sessions = self._sessions()
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if os.getsid(process.pid) in sessions:
                    found |= {process, *process.children(recursive=True)}
        return found


class _QuietPrinter(Printer):
    """Shows what the processes write, not what honcho says of its own work."""

    def write(self, message: Message) -> None:
        if message.name != "system":
            super().write(message)


def kill_processes(processes: set[psutil.Process]) -> None:
    """Returns when none of them runs any more."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(_runs, processes)):
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        # What has ended stays a zombie for as long as its new parent, in a container often no
        # real init, cares not to read its exit code. psutil.wait_procs would wait for that.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
