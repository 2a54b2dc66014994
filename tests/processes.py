"""Real processes of the tests: free ports, logs in files, and an end by their own ids."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class LoggedProcess:
    """A process in a session of its own, its output in a file.

    Args:
        env: What is set beside the tests' own environment.
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

    def terminate(self, timeout_s: float = 60) -> int:
        """Its exit code, after SIGTERM; what it leaves running is killed, and is an error."""
        tree = self._find_tree()
        self.process.terminate()
        exit_code = self.process.wait(timeout_s)
        _, left = psutil.wait_procs(tree, timeout=10)
        for process in left:
            process.kill()
        assert not left, f"left running by {self.process.args}: {left}"
        return exit_code

    def kill_tree(self) -> None:
        """SIGKILL for it and everything that it has started, all at once."""
        tree = self._find_tree()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(10)
        _, left = psutil.wait_procs(tree, timeout=10)
        assert not left, f"survived SIGKILL: {left}"

    def _find_tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]
