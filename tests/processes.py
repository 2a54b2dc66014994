"""Processes that tests start: their free ports, their logs and their ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from types import FrameType

import psutil

_SUPERVISOR = Path(__file__).parents[1] / "airflow_instances" / "supervise.py"
_LEFT_BEHIND = 70  # its exit code if descendants had to be killed


def find_free_port() -> int:
    """Find a port that a server may take later, or again after a restart: by default, the kernel
    gives none of these to connections, and to servers that ask for any."""
    while True:
        port = SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end this process and all that it started, as Ctrl-C does. So does the
    end of a process that started this one, such as the shell of `make`, unless `nohup` is used.

    SIGINT is set too: a shell starts background processes with SIGINT ignored, their children
    inherit that, and `dagster dev` copies its handling of SIGTERM from it (1.13).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, _interrupt)
        threading.Thread(target=_end_with, args=[_find_ancestors()], daemon=True).start()


def _find_ancestors() -> list[psutil.Process]:
    return [process for process in psutil.Process().parents() if process.pid != 1]


def _end_with(ancestors: list[psutil.Process]) -> None:
    while all(map(is_running, ancestors)):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class LoggedProcess:
    """A process in a session of its own, with its output in a file.

    It ends with this process, together with all of its descendants, however this process ends: see
    `airflow_instances/supervise.py`.

    Args:
        env: Added to the tests' own environment.
        grace_s: For how long its descendants may outlive it.

    Attributes:
        process: The supervisor, whose child the command is.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        cwd: Path,
        env: Mapping[str, str],
        grace_s: float = 30,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, _SUPERVISOR, "--tied", "--grace-s", str(grace_s), *command],
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")

    def find_processes(self) -> list[psutil.Process]:
        """Return the command and its descendants."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, timeout_s: float) -> int:
        """Return the exit code when it has ended.

        Raises:
            AssertionError: It left processes behind, which were killed.
        """
        exit_code = self.process.wait(timeout_s)
        self._untie()
        assert exit_code != _LEFT_BEHIND, self.read_log()[-3000:]
        return exit_code

    def terminate(self, timeout_s: float = 150) -> int:
        """Send SIGTERM, and wait. Processes that survive are killed and an error."""
        self.process.terminate()
        return self.wait(timeout_s)

    def kill_tree(self) -> None:
        """Send SIGKILL to the process and all its descendants at once."""
        self._untie()
        self.process.wait(30)

    def _untie(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
