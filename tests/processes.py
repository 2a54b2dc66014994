"""Processes that tests start: their free ports, their logs and their ends."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class LoggedProcess:
    """A process in a session of its own, with its output in a file.

    Args:
        env: Added to the tests' own environment.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self, timeout_s: float = 120) -> int:
        """Send SIGTERM and return the exit code. Processes that survive are killed and an error."""
        tree = self._find_tree()
        self.process.terminate()
        exit_code = self.process.wait(timeout_s)
        survivors = _wait_until_ended(tree, timeout_s=30)
        for process in survivors:
            process.kill()
        assert not survivors, f"still running after {self.process.args}: {survivors}"
        return exit_code

    def kill_tree(self) -> None:
        """Send SIGKILL to the process and all its descendants at once."""
        tree = self._find_tree()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(30)
        survivors = _wait_until_ended(tree, timeout_s=30)
        assert not survivors, f"survived SIGKILL: {survivors}"

    def _find_tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


def _wait_until_ended(
    processes: Sequence[psutil.Process], timeout_s: float
) -> list[psutil.Process]:
    """Return those that are still running at the deadline.

    An ended process is a zombie until its parent reads its exit code. In a container the new parent
    of orphans may never do so, for which `psutil.wait_procs` would wait.
    """
    deadline = time.monotonic() + timeout_s
    while (running := [each for each in processes if is_running(each)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return running


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
