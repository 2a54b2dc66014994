"""Run several pytest processes at the same time, with one pair of Airflows for all of them.

Each argument holds the options of one process:

    python -m tests.with_airflows "-m dagster_dev tests/live" "tests/contract/airflow"

The output of a process is printed as a whole when the process has ended.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.airflows import ROOT, start_airflows
from tests.processes import LoggedProcess, end_on_signals
from tests.waiting import wait_for

OPTIONS = ["-q", "--durations", "10"]
# Each test has a time-out of its own.
TIMEOUT_S = 3600


def main(*arguments: str) -> int:
    """Return 0 if all tests passed."""
    end_on_signals()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        airflows = stack.enter_context(start_airflows(folder))
        running: dict[str, LoggedProcess] = {}
        for number, options in enumerate(arguments):
            command = [sys.executable, "-m", "pytest", *OPTIONS, *shlex.split(options)]
            process = LoggedProcess(command, folder / f"{number}.log", ROOT, airflows.export())
            stack.callback(_end, process)
            running[options] = process
        exit_codes = []
        while running:
            options = wait_for(lambda: _find_ended(running), "some tests have ended", TIMEOUT_S)
            process = running.pop(options)
            exit_codes.append(process.process.returncode)
            sys.stdout.write(f"pytest {options}\n{process.read_log()}\n")
            sys.stdout.flush()
    return max(exit_codes)


def _find_ended(running: dict[str, LoggedProcess]) -> str | None:
    return next((options for options, process in running.items() if not process.is_running), None)


def _end(process: LoggedProcess) -> None:
    if process.is_running:
        process.terminate()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
