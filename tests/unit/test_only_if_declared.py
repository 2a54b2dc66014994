"""What is said at load about the function of an `only_if`, and the records it deals with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from federation_defs import Run, Skip, UpstreamEvent
from federation_defs.dependencies.only_if import check_function

SIX = datetime(2026, 1, 31, 6, tzinfo=timezone.utc)

RULES = """
from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from federation_defs import Decision, Run, Skip, UpstreamEvent

if TYPE_CHECKING:
    from nowhere import Unknown

def plain(event): ...
def run(event: UpstreamEvent) -> Run: ...
def either(event: UpstreamEvent) -> Run | Skip: ...
def alias(event: Unknown) -> Decision: ...
def anything(event) -> Any: ...
def unknown(event) -> Unknown: ...
def optional_more(event, limit=3) -> Skip: ...
@functools.cache
def wrapped(event) -> Skip: ...
class Rule:
    def __call__(self, event) -> Run: ...
rule = Rule()
partial = functools.partial(optional_more, limit=4)

def is_month_end(event) -> bool: ...
def maybe(event) -> Run | None: ...
def listed(event) -> list[Run]: ...
def hidden(event: Unknown) -> str: ...
def nothing() -> Run: ...
def two(event, other) -> Run: ...
def named(*, event) -> Run: ...
async def later(event) -> Run: ...
LIMIT = 3
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a module with functions, right and wrong."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "declared_rules.py").write_text(RULES)
    (folder / "broken_rules.py").write_text("import json\n\nraise KeyError('a day')\n")
    (folder / "script_rules.py").write_text("import sys\n\nsys.exit(1)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "declared_rules"


@pytest.mark.parametrize(
    "function",
    [
        "plain",
        "run",
        "either",
        "alias",
        "anything",
        "unknown",
        "optional_more",
        "wrapped",
        "rule",
        "partial",
    ],
)
def test_a_function_that_may_be_right_is_accepted(rules: str, function: str) -> None:
    assert check_function(f"{rules}:{function}") is None


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("is_month_end", "has to return Run or Skip"),
        ("maybe", "has to return Run or Skip"),
        ("listed", "has to return Run or Skip"),
        ("hidden", "has to return Run or Skip"),
        ("nothing", "has to take one argument"),
        ("two", "has to take one argument"),
        ("named", "has to take one argument"),
        ("later", "is a coroutine function"),
        ("LIMIT", "is of type int, not a function"),
        ("is_month_ends", "is not in its module; did you mean 'is_month_end'?"),
    ],
)
def test_a_function_that_is_wrong_is_refused_with_the_reason(
    rules: str, function: str, problem: str
) -> None:
    found = check_function(f"{rules}:{function}")
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_rules:f", "can't be imported: ModuleNotFoundError: No module named 'no_such"),
        ("broken_rules:f", "can't be imported: broken_rules.py:3: KeyError: 'a day'"),
        ("script_rules:f", "can't be imported: script_rules.py:3: SystemExit: 1"),
    ],
)
@pytest.mark.usefixtures("rules")
def test_a_module_that_can_not_be_imported_is_refused(name: str, problem: str) -> None:
    assert (check_function(name) or "").startswith(problem)


def test_an_event_is_the_same_after_json() -> None:
    event = UpstreamEvent(
        upstream="warehouse/load_orders",
        downstream="metrics/order_metrics",
        state="late",
        deadline=SIX,
        conf={"day": "31", "deep": [1, {"é": None}]},
    )
    stored = json.dumps(event.to_json())
    assert UpstreamEvent.from_json(json.loads(stored)) == event
    assert event.to_json()["deadline"] == "2026-01-31T06:00:00+00:00"


def test_neither_an_event_nor_an_answer_shows_a_conf() -> None:
    event = UpstreamEvent(
        upstream="a/b", downstream="c/d", state="success", conf={"password": "hunter22"}
    )
    assert "hunter22" not in repr(event)
    assert "hunter22" not in repr(Run({"password": "hunter22"}))


@pytest.mark.parametrize("conf", [[1], "day", {"day": SIX}, {"x": {1, 2}}, {("a", "b"): 1}])
def test_a_conf_that_json_does_not_have_is_refused_where_it_is_made(conf: object) -> None:
    with pytest.raises(TypeError):
        Run(conf)  # pyright: ignore[reportArgumentType]


def test_a_conf_with_nan_and_a_reason_that_is_no_text_are_refused_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Run({"x": float("nan")})
    with pytest.raises(TypeError, match="pass a str"):
        Skip(None)  # pyright: ignore[reportArgumentType]
