from __future__ import annotations

from pathlib import Path

import pytest

from federation_defs.state import read_snapshot, write_snapshot
from tests.unit.build import build_dag_snapshot, build_snapshot

SNAPSHOT = build_snapshot(
    build_dag_snapshot("a", owners=("ann",), airflow_tags=("sales",), schedule="@daily"),
    "b",
    unselected=("c",),
    vanished=("d",),
)


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_snapshot(build_snapshot("old"), path)
    write_snapshot(SNAPSHOT, path)
    assert read_snapshot(path) == SNAPSHOT
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_there_is_no_snapshot(tmp_path: Path) -> None:
    assert read_snapshot(None) is None
    assert read_snapshot(tmp_path / "state") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\xff", '{"format": 1, "dags": {}}'])
def test_an_unreadable_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "state"
    path.write_text(content, encoding="latin-1")
    assert read_snapshot(path) is None
    assert "Ignoring a state that can't be read" in caplog.text


def test_a_file_of_another_format_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_snapshot(SNAPSHOT, path)
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert read_snapshot(path) is None


def test_half_of_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "state"
    snapshot = build_snapshot(build_dag_snapshot("a", description="\ud83d"))
    write_snapshot(snapshot, path)
    assert read_snapshot(path) == snapshot
