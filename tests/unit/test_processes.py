"""The processes that tests and benchmarks start end with them, however these end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.processes import LoggedProcess, is_running
from tests.waiting import wait_for

SLEEP = "exec sleep 600"
# A process in a session of its own, and one whose parent has ended.
FAMILY = f"""
echo $$ >> pids
setsid sh -c 'echo $$ >> pids; {SLEEP}' &
(setsid sh -c 'echo $$ >> pids; {SLEEP}' &)
"""
RUNNER = """
import signal, sys, time
from pathlib import Path
from tests.processes import LoggedProcess, end_on_signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
end_on_signals()
folder = Path(sys.argv[1])
process = LoggedProcess(["sh", "family.sh"], folder / "log", cwd=folder, env={})
try:
    while True:  # Python handles a signal that arrives just before a sleep begins after the sleep
        time.sleep(0.1)
finally:
    process.terminate()
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """A folder with a program that starts others. All of them write down their ids."""
    (tmp_path / "family.sh").write_text(f"{FAMILY}{SLEEP}\n")
    yield tmp_path
    for process in find_family(tmp_path):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def find_family(folder: Path) -> list[psutil.Process]:
    """Return those that have not ended."""
    pids = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(int(pid)))
    return [process for process in found if is_running(process)]


def wait_for_family(folder: Path) -> list[psutil.Process]:
    def find() -> list[psutil.Process] | None:
        found = find_family(folder)
        return found if len(found) == 3 else None

    return wait_for(find, "three processes run", interval_s=0.05)


def assert_ended(processes: list[psutil.Process]) -> None:
    wait_for(lambda: not any(map(is_running, processes)), f"{processes} have ended")


def start(folder: Path, grace_s: float = 30) -> LoggedProcess:
    return LoggedProcess(["sh", "family.sh"], folder / "log", folder, env={}, grace_s=grace_s)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_the_process_that_started_it_ends(
    family: Path, number: signal.Signals
) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, family], cwd=ROOT)
    try:
        processes = wait_for_family(family)
        if number is not signal.SIGKILL:  # which can't wait for them
            for process in processes[1:]:
                process.kill()
        runner.send_signal(number)
        assert_ended(processes)
    finally:
        runner.kill()
        runner.wait(30)


def test_nothing_is_left_when_the_shell_of_the_process_that_started_it_is_killed(
    family: Path,
) -> None:
    script = '"$0" -c "$1" "$2"; true'  # with more to do, a shell waits for its command
    shell = subprocess.Popen(["/bin/sh", "-c", script, sys.executable, RUNNER, family], cwd=ROOT)
    started = psutil.Process(shell.pid)
    (runner,) = wait_for(lambda: started.children() or None, "the runner has started")
    processes = wait_for_family(family)
    for process in processes[1:]:
        process.kill()
    shell.kill()
    shell.wait(30)
    assert_ended([runner, *processes])


def test_killing_a_process_kills_its_descendants(family: Path) -> None:
    process = start(family)
    processes = wait_for_family(family)
    process.kill_tree()
    assert not process.is_running
    assert_ended(processes)


def test_nothing_is_left_of_a_process_that_somebody_else_kills(family: Path) -> None:
    process = start(family)
    processes = wait_for_family(family)
    processes[0].kill()
    assert process.wait(60) == 128 + signal.SIGKILL
    assert_ended(processes)


def test_a_process_ends_when_its_supervisor_is_killed(family: Path) -> None:
    process = start(family)
    processes = wait_for_family(family)
    os.kill(process.process.pid, signal.SIGKILL)
    process.wait(60)
    assert_ended(processes[:1])


def test_the_exit_code_is_that_of_the_process(tmp_path: Path) -> None:
    process = LoggedProcess(["sh", "-c", "exit 3"], tmp_path / "log", cwd=tmp_path, env={})
    assert process.wait(60) == 3


def test_descendants_that_outlive_a_terminated_process_are_killed_and_an_error(
    family: Path,
) -> None:
    process = start(family, grace_s=0.1)
    processes = wait_for_family(family)
    with pytest.raises(AssertionError, match="has left them behind"):
        process.terminate()
    assert_ended(processes)
