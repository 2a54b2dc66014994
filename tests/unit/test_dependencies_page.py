"""`docs/dependencies.md` shows declarations that are accepted, and refusals as they are."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from federation_defs.declaration import (
    UPSTREAM_CONF_KEY,
    DeadlineDeclaration,
    DependencyDeclaration,
    TriggerDeclaration,
)
from federation_defs.dependencies.record import Run, Skip, UpstreamEvent
from tests.unit.pages import Block, check_block, find_blocks

PAGE = (Path(__file__).parents[2] / "docs" / "dependencies.md").read_text()
# Of DAGs that are triggered, whether they depend on others or not: docs/executing.md has these.
EXECUTION_KEYS = {"conf", "timeout", "on_timeout", "on_cancel", "on_retry", "wait"}


BLOCKS = find_blocks(PAGE)
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own module `my_project.rules`."""
    (text,) = (text for text in PYTHON if text.startswith("# my_project/rules.py"))
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "rules.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        *("active trigger", "passive sensing", "data-aware", "handshake"),
        *("granularity mismatch", "backfill", "partial success", "environments"),
    ],
)
def test_each_pattern_has_a_picture_and_a_declaration(pattern: str) -> None:
    (section,) = re.findall(rf"^## [^\n]*{pattern}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^```(\w+)$", section, re.MULTILINE)[:2] == ["text", "yaml"]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_declarations_are_accepted_or_refused_as_the_page_says(block: Block) -> None:
    check_block(block)


def test_the_page_shows_refusals_and_names_every_key() -> None:
    assert len([block for block in BLOCKS if block.refusal]) >= 6
    keys = {
        # On the pages about time and about several code locations.
        *DependencyDeclaration.model_fields.keys() - {"window", "partitions"},
        *DeadlineDeclaration.model_fields,
        *TriggerDeclaration.model_fields.keys() - EXECUTION_KEYS,
        "max_duration",
        "deadline",
        "environment",
    }
    assert not {key for key in keys if not re.search(rf"\b{key}: ", PAGE)}


def test_the_function_on_the_page_decides_as_it_says() -> None:
    is_month_end = import_module("my_project.rules").is_month_end

    def decide(day: datetime | None) -> Run | Skip:
        event = UpstreamEvent(
            upstream="w/a", downstream="f/b", state="success", run_id="1", logical_date=day
        )
        return is_month_end(event)

    assert decide(datetime(2026, 1, 31, tzinfo=timezone.utc)) == Run({"month": "2026-01"})
    assert decide(datetime(2026, 1, 30, tzinfo=timezone.utc)) == Skip(
        "30 January is no month's end"
    )
    assert decide(None) == Skip("a run without a date")


def test_the_conf_on_the_page_is_one_that_is_passed() -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (shown,) = json.loads(text)[UPSTREAM_CONF_KEY]["upstream"]
    passed = UpstreamEvent.from_json(shown).to_json()
    assert shown == {key: value for key, value in passed.items() if value is not None}


def test_the_python_on_the_page_runs() -> None:
    modules: list[dict[str, Any]] = [{"__name__": "page"} for _ in PYTHON]
    for text, module in zip(PYTHON, modules, strict=True):
        exec(text, module)  # noqa: S102
    names = [name for module in modules for name in module]
    assert {"central 1", "store_at 2", "store_de 3", "store_fr 4"} <= set(names)
    assert "orders" in names
