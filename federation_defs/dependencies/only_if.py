"""Calls the function that a DAG names in `trigger.only_if`, in a process of its own.

The function is users' code: it may print, hang, crash or leave processes behind. None of that
reaches the code server, which runs all sensors of the code location.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from federation_defs.dependencies.record import Decision, Run, Skip, UpstreamEvent
from federation_defs.errors import OnlyIfError
from federation_defs.redaction import clean_text, has_secrets, redact_text

TIMEOUT_S = 10.0
_ORPHAN_S = 5.0  # so long after the time-out, a child whose parent has died ends itself
_MAX_ANSWER_BYTES = 1_000_000
_MAX_ERROR_CHARS = 10_000
_MAX_SHOWN_CHARS = 300
_MAX_CONF_CHARS = 1000  # PostgreSQL's index of tags takes 2,700 bytes (dagster 1.13)

# The child sets its import path before it imports anything that is not built in.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from federation_defs.dependencies.only_if import reply; reply()"
)


def ask(name: str, event: UpstreamEvent, timeout_s: float = TIMEOUT_S) -> Decision:
    """Ask a function whether an event starts a run.

    The function runs in a child process with the environment and import path of this process. Its
    output goes to this process's standard error. After its answer, or the time-out, the child is
    killed with all processes that it started.

    Args:
        name: The function, as module:function.
        event: The argument of the function.
        timeout_s: Seconds for the start of the process, the import and the call together.

    Returns:
        The answer. The conf of a `Run` fits into a tag of the Dagster run, and the reason of a
        `Skip` holds no secret of the event's conf.

    Raises:
        OnlyIfError: The function gave no answer in time, an invalid one, or a conf that Dagster
            must not store.
    """
    question = {"name": name, "event": event.to_json(), "timeout_s": timeout_s}

    def fail(reason: str) -> OnlyIfError:
        shown = _clean(reason, event)
        return OnlyIfError(name, upstream=event.upstream, downstream=event.downstream, why=shown)

    try:
        replied, exit_code = _run_child(name, json.dumps(question).encode(), timeout_s)
    except subprocess.TimeoutExpired:
        raise fail(f"gave no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise fail(f"could not be called ({error})") from error
    if not replied:
        ended = f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
        raise fail(f"ended its process ({ended})")
    try:
        answer: dict[str, Any] = json.loads(replied)
        conf_problem = _find_conf_problem(answer.get("run"))
    except RecursionError:
        raise fail("answered with a conf that is nested too deeply") from None
    if (problem := answer.get("problem")) is not None:
        raise fail(problem)
    if (reason := answer.get("skip")) is not None:
        return Skip(_clean(reason, event))
    if conf_problem is not None:
        raise fail(f"answered with {conf_problem}")
    return Run(answer["run"])


def _run_child(name: str, question: bytes, timeout_s: float) -> tuple[bytes, int]:
    """Return the child's output, and its exit code; the negative signal if one killed it."""
    path = [*sys.path, *_find_folders(name)]
    child = subprocess.Popen(  # noqa: S603 - a program of our own
        [sys.executable, "-c", _CHILD, *path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with child:
        try:
            replied, _ = child.communicate(question, timeout_s)
        finally:
            # Kills all that it started, too. (macOS denies it for a group that has ended.)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
    return replied, child.returncode


def _find_folders(name: str) -> list[str]:
    """Return the folders from which the function's package was imported here.

    Dagster (1.13) keeps the working directory on the import path only while it loads the code.
    """
    package = sys.modules.get(name.split(":")[0].split(".")[0])
    places = [*getattr(package, "__path__", [])] or [getattr(package, "__file__", None)]
    return [os.path.dirname(place) for place in places if place]


def _find_conf_problem(conf: dict[str, Any] | None) -> str | None:
    """Return why a conf can't be kept in a tag of the Dagster run, or None if it can."""
    if has_secrets(conf):
        return (
            "a conf that seems to hold a secret, which Dagster would show; keep secrets in an "
            "Airflow connection"
        )
    if (size := len(json.dumps(conf))) > _MAX_CONF_CHARS:
        return (
            f"a conf of {size} characters, but Dagster keeps it in a tag of {_MAX_CONF_CHARS} at "
            "most; pass a reference to the data instead"
        )
    return None


def _clean(text: str, event: UpstreamEvent) -> str:
    """Return a text of the function in one line, without secrets of the event's conf."""
    return " ".join(redact_text(clean_text(text), event.conf).split())[:_MAX_SHOWN_CHARS]


def reply() -> None:
    """Answer the question on standard input, in the child process."""
    question = json.load(sys.stdin)
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the function prints to standard error
    # The parent kills this process in time, unless the parent has died.
    signal.setitimer(signal.ITIMER_REAL, question["timeout_s"] + _ORPHAN_S)
    try:
        decision = _import_function(question["name"])(UpstreamEvent.from_json(question["event"]))
        replied = json.dumps(_encode(decision), allow_nan=False)
    except BaseException as error:  # noqa: BLE001 - SystemExit is no answer either
        replied = json.dumps({"problem": f"failed: {_describe(error, question['name'])}"})
    if len(replied) > _MAX_ANSWER_BYTES:
        replied = json.dumps({"problem": f"answered with more than {_MAX_ANSWER_BYTES} bytes"})
    channel.write(replied.encode())
    channel.flush()
    with suppress(AttributeError, OSError, ValueError):  # the function may have closed it
        sys.stdout.flush()
    # Ends all that it started, too, which may keep the channel open; doesn't wait for threads.
    os.killpg(0, signal.SIGKILL)


def _encode(decision: Any) -> dict[str, Any]:
    match decision:
        case Run(conf):
            return {"run": conf}
        case Skip(reason):
            return {"skip": reason}
    return {"problem": f"returned a {type(decision).__name__}; it has to return Run or Skip"}


def _describe(error: BaseException, name: str) -> str:
    """Return an exception and its line in the function's module: "rules.py:12: ValueError: x"."""
    places = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line}: "
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == name.partition(":")[0]
    ]
    said = " ".join("".join(traceback.format_exception_only(error)).split())
    return "".join(places[-1:]) + said[:_MAX_ERROR_CHARS]


def check_function(name: str) -> str | None:
    """Return why a function can't be used, as it follows the function's name; None if it can.

    Imports its module into this process.
    """
    # Imports Dagster, which a child process does not need.
    from federation_defs.declaration.fields import suggest

    module_name, _, function_name = name.partition(":")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the module may raise anything
        return f"can't be imported: {_describe(error, name)[:_MAX_SHOWN_CHARS]}"
    if not hasattr(module, function_name):
        return f"is not in its module{suggest(function_name, vars(module))}"
    function = getattr(module, function_name)
    if not callable(function):
        return f"is of type {type(function).__name__}, not a function"
    if inspect.iscoroutinefunction(function):
        return "is a coroutine function; write `def`, not `async def`"
    try:
        signature = inspect.signature(function)
        signature.bind(None)
    except TypeError:
        return "has to take one argument, an UpstreamEvent"
    except ValueError:  # a function of C without a signature
        return None
    names = getattr(inspect.unwrap(function), "__globals__", vars(module))
    if not _is_decision(signature.return_annotation, names):
        return "has to return Run or Skip; correct its annotation"
    return None


def _is_decision(annotation: Any, names: dict[str, Any]) -> bool:
    """Whether a function with this return annotation may return `Run`s and `Skip`s only."""
    holder = type("Holder", (), {"__annotations__": {"return": annotation}})
    try:
        resolved = get_type_hints(holder, names)["return"]
    except Exception:  # noqa: BLE001 - it may be any expression
        return True
    if resolved in (inspect.Signature.empty, Any):
        return True
    members = get_args(resolved) if get_origin(resolved) in (Union, UnionType) else (resolved,)
    kinds = [get_origin(member) or member for member in members]
    return all(issubclass(kind, Run | Skip) for kind in kinds if isinstance(kind, type))


def _import_function(name: str) -> Callable[[UpstreamEvent], Any]:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
