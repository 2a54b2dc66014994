from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation_defs.specs import build_specs
from federation_defs.state import read_snapshot, write_snapshot
from tests.unit.build import build_dag_snapshot, build_declaration, build_snapshot

SNAPSHOT = build_snapshot(
    build_dag_snapshot("a", owners=("ann",), airflow_tags=("sales",), schedule="@daily"),
    "b",
    unselected=("c",),
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


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": 1, "dags": {}}', b"\xff\xfe{", b"[" * 100_000],
)
def test_an_unreadable_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    assert read_snapshot(path) is None
    assert f"Ignoring the state {path}: it can't be read (" in caplog.text
    write_snapshot(SNAPSHOT, path)
    assert read_snapshot(path) == SNAPSHOT


def test_partitions_that_can_not_be_read_leave_the_dags(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state"
    for partitions in ([], {"a": {"declared": {"cron": "auto", "start": None}, "resolved": None}}):
        path.write_text(json.dumps({**asdict(SNAPSHOT), "partitions": partitions}))
        assert read_snapshot(path) == SNAPSHOT
    warning = f"Ignoring the partitions in {path}. A refresh resolves them again."
    assert caplog.messages == [warning] * 2


def test_a_folder_in_place_of_the_file_is_ignored(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path) is None


WRITTEN = json.dumps(asdict(SNAPSHOT)).encode()


@given(st.integers(0, len(WRITTEN)), st.integers(0, 30), st.binary(max_size=8))
def test_any_bytes_are_a_snapshot_or_ignored(at: int, length: int, put: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(WRITTEN[:at] + put + WRITTEN[at + length :])
        snapshot = read_snapshot(path)
        if snapshot is not None:
            write_snapshot(snapshot, path)
            assert read_snapshot(path) == snapshot
            build_specs(build_declaration("sales"), snapshot, set())


def test_a_snapshot_of_version_0_1_is_read(tmp_path: Path) -> None:
    """It also has dagster-airlift's metadata, and the DAGs that an earlier one had."""
    dag = asdict(SNAPSHOT.dags["a"]) | {"metadata": "{", "tags": {"dagster/kind/dag": ""}}
    del dag["is_present"]
    old = asdict(SNAPSHOT) | {"dags": {"a": dag}, "vanished": ["d"]}
    path = tmp_path / "state"
    path.write_text(json.dumps(old))
    assert read_snapshot(path) == replace(SNAPSHOT, dags={"a": SNAPSHOT.dags["a"]})


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


def test_a_state_is_for_its_owner_only_and_does_not_follow_links(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "state"
    other.write_text("mine")
    for name in ("state", "state.new"):
        (tmp_path / name).symlink_to(other)
    write_snapshot(SNAPSHOT, path)
    assert other.read_text() == "mine"
    assert path.stat(follow_symlinks=False).st_mode & 0o777 == 0o600
    assert read_snapshot(path) == SNAPSHOT


def test_many_refreshes_at_once_leave_one_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with ThreadPoolExecutor(8) as pool:
        for written in [pool.submit(write_snapshot, SNAPSHOT, path) for _ in range(200)]:
            written.result(60)
    assert read_snapshot(path) == SNAPSHOT
    assert list(tmp_path.iterdir()) == [path]


def test_a_snapshot_says_why_a_dag_can_not_run() -> None:
    snapshot = build_snapshot(
        "runs",
        build_dag_snapshot("paused", is_paused=True),
        build_dag_snapshot("broken", is_paused=True, has_import_errors=True),
        build_dag_snapshot("gone", is_present=False),
        unselected=("hidden",),
    )
    problems = {
        dag_id: snapshot.describe_problem(dag_id)
        for dag_id in ("runs", "hidden", "paused", "broken", "gone", "never_was")
    }
    assert problems == {
        "runs": None,
        "hidden": None,
        "paused": "is paused",
        "broken": "has import errors",
        "gone": "has vanished from its Airflow",
        "never_was": "has vanished from its Airflow",
    }
    others = replace(snapshot, problems={"hidden": "is paused"})
    assert others.describe_problem("hidden") == "is paused"
    assert build_snapshot().describe_problem("never_was") is None  # it may have just started
