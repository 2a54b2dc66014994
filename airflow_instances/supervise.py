"""Run a command, and leave none of its descendants behind.

    python supervise.py [--tied] [--grace-s SECONDS] COMMAND [ARGUMENT ...]

SIGTERM is passed on to the command. When it has ended, its descendants have some time to end too.
They are killed at once when it was killed, and with `--tied` when standard input ends: it is a pipe
whose other end is held by whoever starts this program, and is closed however they end. When this
program is killed, the command gets SIGTERM.

On Linux this includes processes whose parents have ended and those in sessions of their own, such
as Airflow's tasks and gunicorn's workers. They become children of this process.

The exit code is the command's, 128 and the signal's number, or 70 if descendants had to be killed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import psutil

LEFT_BEHIND = 70
_PARENT_DEATH_SIGNAL, _SUBREAPER = 1, 36  # linux/prctl.h


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--grace-s", type=float, default=30.0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    _control(_SUBREAPER, 1)
    command = _start(options.command, options.tied)
    if options.tied:
        threading.Thread(target=_kill_all_when_input_ends, daemon=True).start()
    status = _wait(command.pid)
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code == -signal.SIGKILL:
        _kill_descendants()
    if not _end_descendants(options.command, options.grace_s):
        return LEFT_BEHIND
    return exit_code if exit_code >= 0 else 128 - exit_code


def _start(command: list[str], is_tied: bool) -> subprocess.Popen[bytes]:
    """Start the command, to which SIGTERM is passed on from now on."""
    process: subprocess.Popen[bytes] | None = None
    is_terminated = False

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, terminate)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to the command as well
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if is_tied else None,
        preexec_fn=lambda: _control(_PARENT_DEATH_SIGNAL, signal.SIGTERM),
    )
    if is_terminated:
        process.terminate()
    return process


def _wait(pid: int) -> int:
    """Return the status of a child when it has ended. Reap all that end meanwhile."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return status


def _end_descendants(command: list[str], grace_s: float) -> bool:
    """Return when no descendant is running, and whether all have ended by themselves."""
    deadline = time.monotonic() + grace_s
    while running := _find_descendants():
        if time.monotonic() > deadline:
            print(f"Killed, since {command} has left them behind: {running}", file=sys.stderr)
            _kill_descendants()
            return False
        time.sleep(0.05)
    return True


def _kill_all_when_input_ends() -> None:
    while os.read(0, 1024):
        pass
    _kill_descendants()
    os._exit(128 + signal.SIGKILL)


def _kill_descendants() -> None:
    while running := _find_descendants():  # they may start others meanwhile
        for process in running:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


def _find_descendants() -> list[psutil.Process]:
    """Return the running descendants, parents before their children."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    sys.exit(main())
