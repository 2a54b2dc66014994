"""Runs the demo's processes with honcho, and stops all of them."""

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
    """Runs processes until it is asked to stop, or one of them exits.

    honcho stops the process group of each. Airflow runs every task in a process group of its own,
    so tasks are found by their session: honcho starts each process in a new session, and its
    descendants stay in it, even when their parent dies.

    Attributes:
        exited: The exit codes of the processes that exited without being asked, by name.
    """

    def __init__(self) -> None:
        super().__init__(_QuietPrinter(prefix=False))
        self.exited: dict[str, int] = {}
        self._descendants: set[psutil.Process] = set()

    def run(self) -> None:
        """Start all processes. Return when all of them and their descendants have ended.

        Processes that are still running 5 s after the first one ended are killed.
        """
        try:
            self.loop()
        finally:
            kill_processes(self._descendants | self._find_descendants())

    def terminate(self) -> None:
        """Ask all processes to end. honcho waits, and then kills their process groups."""
        if not self._all_started():
            # honcho does not know all processes yet. Ask again when it does.
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return
        if not self._terminating:
            self.exited = {
                name: process["returncode"]
                for name, process in self._processes.items()
                if process.get("returncode") is not None
            }
            # Before the parents end: a task's own child may be in yet another session.
            self._descendants = self._find_descendants()
            # Tasks have to be asked too, since a scheduler waits for its tasks.
            for process in self._descendants:
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    if os.getpgid(process.pid) not in self._session_ids():
                        process.terminate()
        super().terminate()

    def _session_ids(self) -> set[int]:
        """Return the ids of honcho's sessions, which are also the ids of its process groups."""
        return {process["pid"] for process in self._processes.values() if "pid" in process}

    def _find_descendants(self) -> set[psutil.Process]:
        """Return the running processes and all of their running descendants."""
        session_ids = self._session_ids()
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
                if os.getsid(process.pid) in session_ids:
                    found |= {process, *process.children(recursive=True)}
        return found


class _QuietPrinter(Printer):
    """Prints what the processes write, without honcho's own messages."""

    def write(self, message: Message) -> None:
        if message.name != "system":
            super().write(message)


def kill_processes(processes: set[psutil.Process]) -> None:
    """Kill the processes, and return when none of them is running."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(_is_running, processes)):
        time.sleep(0.05)


def _is_running(process: psutil.Process) -> bool:
    try:
        # A killed process is a zombie until its new parent reads its exit code. In a container
        # that may never happen, so psutil.wait_procs would wait for ever.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
