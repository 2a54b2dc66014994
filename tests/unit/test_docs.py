"""The pages of documentation: their links resolve, and the architecture page knows every module."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from federation_defs.airflow.http import MAX_RETRY_AFTER_S
from federation_defs.dependencies.only_if import TIMEOUT_S
from federation_defs.observation.sensor import Limits
from federation_defs.timing import Timing

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "federation_defs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "airflow_instances" / "README.md",
]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def name_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


def find_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / unquote(path)).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in find_anchors(linked), target


TIMING = Timing()
FIGURES = [
    ("observing", f"{TIMING.interval_per_instance_s:g} seconds times the number of instances"),
    ("observing", f"up to {TIMING.max_fair_interval_s:g} seconds"),
    ("observing", f"{TIMING.interval_per_waiting_run_s:g} seconds times their number"),
    ("observing", f"has {TIMING.tick_s * TIMING.late_tick_share:g} seconds for all its requests"),
    ("observing", f"A tick has {TIMING.tick_s:g} seconds for its requests"),
    ("observing", f"at most {Limits().reports:,} runs and for {TIMING.report_s:g} seconds"),
    ("observing", f"Of more than {Limits().runs:,} runs, the oldest are read first"),
    ("observing", f"have been missing for {TIMING.heartbeat_lost_s:g} seconds"),
    ("architecture", f"at most {TIMING.owner_check_s:g} seconds before it stores an event"),
    ("architecture", f"waits for {TIMING.takeover_s:g} seconds before it reads the event log"),
    ("architecture", f"costs two queries; for {TIMING.read_events_s:g} seconds at most"),
    ("architecture", f"may begin now, for {TIMING.start_dags_s:g} seconds at most"),
    ("architecture", f"has not answered after {TIMING.check_s:g} seconds"),
    ("executing", f"every {TIMING.poll_run.max_s:g} seconds for long runs"),
    ("executing", f"within {TIMING.check_paused.first_s:g} seconds at first"),
    ("connecting", f"`Retry-After` up to {MAX_RETRY_AFTER_S:g} s"),
    ("errors", f"took more than {TIMEOUT_S:g} seconds"),
]


@pytest.mark.parametrize(("page", "figure"), FIGURES)
def test_a_page_has_the_figure_of_the_code(page: str, figure: str) -> None:
    assert figure in " ".join((ROOT / "docs" / f"{page}.md").read_text().split())


@pytest.mark.parametrize("walk", ["A run ended", "A DAG is due", "Building the definitions"])
def test_a_walk_passes_each_module_once(walk: str) -> None:
    section = ARCHITECTURE.split(f"\n## {walk}\n")[1].split("\n## ")[0]
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \|", section, re.MULTILINE)
    assert len(steps) > 5
    assert len(steps) == len(set(steps))


def test_every_module_named_in_the_architecture_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE))
    assert named
    missing = {path for path in named if not any((at / path).exists() for at in (PACKAGE, ROOT))}
    assert not missing


def test_the_architecture_names_every_module() -> None:
    modules = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent == PACKAGE
    }
    assert not {path for path in modules if f"`{path}`" not in ARCHITECTURE}
