"""The function of an `only_if` is asked in a process of its own, whatever it does there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest

from federation_defs import Run, Skip, UpstreamEvent
from federation_defs.dependencies.only_if import ask
from federation_defs.errors import OnlyIfError
from tests.waiting import wait_for

SIX = datetime(2026, 1, 31, 6, tzinfo=timezone.utc)
EVENT = UpstreamEvent(
    upstream="warehouse/load_orders",
    downstream="metrics/order_metrics",
    state="success",
    run_id="scheduled__1",
    logical_date=SIX,
    conf={"day": 31, "password": "hunter22", "text": "é\ud800", "long": "x" * 200_000},
)

RULES = """
import ctypes, multiprocessing, os, subprocess, sys, threading, time
from pathlib import Path

from federation_defs import Run, Skip

def on_the_last_day(event):
    if event.logical_date is None or event.logical_date.day != 31:
        return Skip("no month has ended")
    return Run({"day": event.conf["day"], "run": event.run_id, "conf": len(event.conf["long"])})

def plainly(event):
    return Run()

def by_environment(event):
    return Skip(os.environ["ONLY_IF_SAYS"] + " " + os.getcwd())

def noisily(event):
    print('{"run": null}')
    sys.stdout.write("x" * 300_000)
    os.write(1, b"{}")
    os.system("echo out; echo err >&2")
    sys.stderr.write("done")
    return Skip("said")

def closing(event):
    sys.stdout.close()
    sys.stderr = None
    return Skip("said")

def with_leftovers(event):
    threading.Thread(target=time.sleep, args=(600,)).start()
    if os.fork() == 0:
        time.sleep(600)
    start_sleep(event)
    return Skip("said")

def start_sleep(event):
    sleep = subprocess.Popen(["sleep", "600"])
    Path(os.environ["ONLY_IF_PID"]).write_text(str(sleep.pid))

def reasoning(event):
    return Skip("password " + event.conf["password"] + "\\n\\x1b[31m" + "long " * 1000)

def hanging(event):
    start_sleep(event)
    time.sleep(600)

def shouting(event):
    while True:
        pass

def raising(event):
    raise ValueError("no\\n\\x1b[31mday for " + event.conf["password"] + " " + "x" * 5000)

def exiting(event):
    sys.exit(0)

def leaving(event):
    start_sleep(event)
    os._exit(3)

def crashing(event):
    ctypes.string_at(0)

def agreeing(event):
    return True

def silent(event):
    pass

async def later(event):
    return Run()

def dated(event):
    return Run({"date": event.logical_date})

def changed(event):
    run = Run({})
    run.conf["date"] = event.logical_date
    return run

def endless(event):
    return Skip("x" * 2_000_000)

def deep(event):
    conf = {}
    for _ in range(100_000):
        conf = {"a": conf}
    return Run(conf)

def nested(event):
    conf = []
    for _ in range(600):
        conf = [conf]
    return Run({"a": conf})

def long(event):
    return Run({"paths": ["x" * 99] * 99})

def secretive(event):
    return Run({"password": "x"})
"""


@pytest.fixture(autouse=True)
def rules(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "rules_of_test.py").write_text(RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setenv("ONLY_IF_SAYS", "hello")
        patch.setenv("ONLY_IF_PID", str(tmp_path / "pid"))
        yield


def decide(function: str, timeout_s: float = 120.0) -> Run | Skip:
    """Ask with much time: only a test of the time-out may reach it, also on a busy machine."""
    return ask(f"rules_of_test:{function}", EVENT, timeout_s)


def fail(function: str, timeout_s: float = 120.0) -> str:
    """Return why the function gave no answer."""
    with pytest.raises(OnlyIfError) as failed:
        decide(function, timeout_s)
    message = str(failed.value)
    before = (
        "Airflow 'metrics' was not asked to run DAG 'order_metrics' for 'warehouse/load_orders', "
        f"because `only_if` rules_of_test:{function} "
    )
    assert message.startswith(before)
    assert "hunter22" not in message
    assert message.isprintable()
    return message.removeprefix(before).split(" Correct the function: ")[0]


def test_the_function_sees_what_happened_and_answers_with_a_conf() -> None:
    assert decide("on_the_last_day") == Run({"day": 31, "run": "scheduled__1", "conf": 200_000})
    assert decide("plainly") == Run()


def test_the_function_has_the_environment_and_the_folder_of_its_parent() -> None:
    assert decide("by_environment") == Skip(f"hello {os.getcwd()}")


@pytest.mark.parametrize("function", ["noisily", "closing"])
def test_what_the_function_prints_does_not_disturb_its_answer(
    function: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert decide(function) == Skip("said")
    if function == "noisily":
        printed = capfd.readouterr()
        assert printed.out == ""
        assert all(each in printed.err for each in ("out\n", "err\n", "done", '{"run": null}'))


def test_a_function_that_leaves_threads_and_processes_behind_is_not_waited_for(
    tmp_path: Path,
) -> None:
    assert decide("with_leftovers") == Skip("said")
    wait_until_ended(tmp_path / "pid")


def test_a_reason_is_shown_in_one_line_and_without_the_secrets_of_the_conf() -> None:
    decision = decide("reasoning")
    assert isinstance(decision, Skip)
    assert decision.reason.startswith("password *** long long")
    assert len(decision.reason) <= 300


def test_a_function_that_goes_on_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    for timeout_s in (3, 12, 48):  # on a busy machine, the function begins late
        assert fail("hanging", timeout_s) == f"gave no answer within {timeout_s} s."
        if pid.exists() and pid.read_text():
            wait_until_ended(pid)
            return
    pytest.fail("the function has not started its child within 48 s")


def test_a_function_that_is_busy_for_ever_is_killed() -> None:
    assert fail("shouting", timeout_s=3.0) == "gave no answer within 3 s."


def wait_until_ended(file: Path) -> None:
    pid = int(file.read_text())

    def has_ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(has_ended, "the child of the function has ended", timeout_s=60)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raising", "failed: rules_of_test.py:54: ValueError: no day for *** xxx"),
        ("exiting", "failed: rules_of_test.py:57: SystemExit: 0"),
        ("leaving", "ended its process (exit code 3)"),
        ("crashing", "ended its process (signal 11)"),
        ("agreeing", "returned a bool; it has to return Run or Skip"),
        ("silent", "returned a NoneType; it has to return Run or Skip"),
        ("later", "returned a coroutine; it has to return Run or Skip"),
        ("dated", "failed: rules_of_test.py:76: TypeError: Object of type datetime is not JSON"),
        ("changed", "failed: TypeError: Object of type datetime is not JSON serializable"),
        ("endless", "answered with more than 1000000 bytes"),
        ("deep", "failed: rules_of_test.py:90: RecursionError: "),
        ("nested", "answered with a conf that is nested too deeply"),
        ("long", "answered with a conf of 10208 characters, but Dagster keeps it in a tag"),
        ("secretive", "answered with a conf that seems to hold a secret, which Dagster would"),
        ("no_such_function", "failed: AttributeError: module 'rules_of_test' has no attribute"),
    ],
)
def test_a_function_without_an_answer_is_an_error_that_says_what_it_did(
    function: str, reason: str
) -> None:
    why = fail(function)
    assert why.startswith(reason)
    assert len(why) < 400


def test_a_crash_leaves_no_child_behind(tmp_path: Path) -> None:
    fail("leaving")
    wait_until_ended(tmp_path / "pid")


def test_a_module_that_this_process_found_by_another_import_path_is_found_there(
    tmp_path: Path,
) -> None:
    """As Dagster does it: the working directory is on the path only while the code is loaded."""
    (tmp_path / "code" / "package_of_test").mkdir(parents=True)
    (tmp_path / "code" / "package_of_test" / "rules.py").write_text(RULES)
    sys.path.insert(0, str(tmp_path / "code"))
    try:
        import package_of_test.rules  # noqa: F401  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    assert ask("package_of_test.rules:plainly", EVENT, 120.0) == Run()


def test_a_question_does_without_importing_dagster() -> None:
    """It would add a second of CPU time to each."""
    code = "import sys, federation_defs.dependencies.only_if; print('dagster' in sys.modules)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert printed.stdout.strip() == "False"
