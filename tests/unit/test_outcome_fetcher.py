"""The selection of the runs that a tick reports."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation_defs.airflow.models import DagRun
from federation_defs.observation.outcome_fetcher import select_runs
from tests.unit.build import build_run

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def end_at(seconds: float | None) -> datetime | None:
    """Return the time this many seconds after noon."""
    return None if seconds is None else NOON + timedelta(seconds=seconds)


def build_runs(dag_id: str, *ends_at_s: float | None) -> list[DagRun]:
    """Build runs that are named by the second of their end."""
    return [build_run(dag_id, f"{dag_id} {end}", end_date=end_at(end)) for end in ends_at_s]


def select_ids(runs: list[DagRun], at_most: int) -> list[str]:
    return [run.run_id for run in select_runs(runs, at_most)]


def test_all_runs_are_selected_in_the_order_of_their_ends_if_they_are_few() -> None:
    runs = [*build_runs("a", 3, 1), *build_runs("b", 2, 0)]
    assert select_ids(runs, 4) == ["b 0", "a 1", "b 2", "a 3"]


def test_of_too_many_runs_those_of_dags_with_few_runs_are_selected_first() -> None:
    runs = [*build_runs("many", 0, 1, 2, 3, 4), *build_runs("one", 9), *build_runs("two", 8, 7)]
    assert select_ids(runs, 4) == ["one 9", "two 7", "two 8", "many 0"]


def test_the_oldest_runs_of_each_dag_are_selected_first() -> None:
    runs = [*build_runs("many", 4, 3, 2, 1, 0), *build_runs("one", 2.5)]
    assert select_ids(runs, 4) == ["one 2.5", "many 0", "many 1", "many 2"]


def test_runs_with_the_same_end_are_sorted_by_their_ids() -> None:
    runs = [build_run("a", run_id, end_date=end_at(1)) for run_id in ("r 3", "r 1", "r 2")]
    assert select_ids(runs, 3) == ["r 1", "r 2", "r 3"]
    assert select_ids(runs, 2) == ["r 1", "r 2"]


def test_runs_without_an_end_come_last() -> None:
    runs = build_runs("a", None, 5, 1)
    assert select_ids(runs, 3) == ["a 1", "a 5", "a None"]
    assert select_ids(runs, 2) == ["a 1", "a 5"]


@pytest.mark.parametrize(("at_most", "count"), [(0, 0), (1, 1), (3, 3), (6, 6), (100, 6)])
def test_as_many_runs_are_selected_as_allowed(at_most: int, count: int) -> None:
    runs = [*build_runs("a", 0, 1, 2), *build_runs("b", 0, 1), *build_runs("c", 0)]
    assert len(select_runs(runs, at_most)) == count


def test_an_empty_batch_gives_no_runs() -> None:
    assert select_runs([], 10) == []


RUNS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.none() | st.integers(0, 9)),
    max_size=40,
    unique_by=lambda run: run[:2],
).map(
    lambda runs: [build_run(dag_id, str(name), end_date=end_at(end)) for dag_id, name, end in runs]
)


@given(runs=RUNS, at_most=st.integers(0, 45))
def test_no_run_is_selected_before_an_earlier_run_of_its_dag(
    runs: list[DagRun], at_most: int
) -> None:
    chosen = select_runs(runs, at_most)
    assert len(chosen) == min(at_most, len(runs))
    ended = sorted(runs, key=lambda run: (run.end_date is None, run.end_date or NOON, run.run_id))
    if len(runs) <= at_most:
        assert chosen == ended
    for dag_id in "abc":
        group = [run for run in chosen if run.dag_id == dag_id]
        assert group == [run for run in ended if run.dag_id == dag_id][: len(group)]
