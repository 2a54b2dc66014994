"""Which events start a run, by their positions in the event log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.events import AssetMaterialization

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import (
    REREAD_EVENTS,
    REREAD_POSITIONS,
    Cause,
    Cursor,
    Downstream,
    Pending,
    Waiting,
    add_event,
    drop_causes,
    find_due,
    match_dependencies,
)
from federation_defs.naming import build_asset_key
from federation_defs.partition_mapping import PartitionMapping

A, B = "a/x", "b/y"
DAYS = dg.DailyPartitionsDefinition("2026-01-01")


def declare(*upstreams: Any, **trigger: Any) -> Downstream:
    dag = DagDeclaration.model_validate({"depends_on": list(upstreams), "trigger": trigger})
    return Downstream("metrics", "c", dag)


def happen(upstream: str, position: int, state: Any = "success") -> AssetEvent:
    key = build_asset_key(*upstream.split("/"))
    record: Any = AssetMaterialization(key)
    return AssetEvent(position, key, state, f"run_{position}", record)


NOTHING: Mapping[str | None, Pending] = MappingProxyType({})


def read(
    dag: Downstream, *events: AssetEvent, waiting: Mapping[str | None, Pending] = NOTHING
) -> Waiting:
    taken = dict(waiting)
    for event in events:
        add_event(dag, match_dependencies(dag, event), taken, event)
    return taken


def reload(dag: Downstream, waiting: Waiting) -> Waiting:
    """Return what waits for a DAG after a restart with another declaration of it."""
    cursor = decider.load(decider.dump(Cursor(9, 0, dags={"c": waiting})), {"c": dag})
    assert cursor
    return dict(cursor.dags["c"])


def find_positions(dag: Downstream, waiting: Waiting) -> list[int]:
    return [due.causes[-1].position for due in find_due(dag, waiting)]


def test_an_event_that_becomes_visible_after_a_later_one_is_not_seen_before() -> None:
    cursor = Cursor(0, 0).advance(10, {10})
    assert 9 not in cursor.seen
    assert cursor.advance(10, {9, 10}).seen == {9, 10}


def test_what_is_remembered_of_what_was_read_does_not_grow() -> None:
    cursor = Cursor(0, 0)
    for position in range(0, 2 * REREAD_POSITIONS, 100):
        cursor = cursor.advance(position, range(position - 99, position + 1))
    assert len(cursor.seen) == REREAD_EVENTS
    assert min(cursor.seen) == cursor.start + 1
    for position in range(10, 4 * REREAD_POSITIONS, 100):
        cursor = cursor.advance(2 * REREAD_POSITIONS + position, {position})
    assert cursor.start == cursor.position - REREAD_POSITIONS


def test_an_event_that_becomes_visible_late_undoes_nothing_that_was_stored_after_it() -> None:
    dag = declare(A, B, when="all")
    waiting = read(dag, happen(A, 5), happen(A, 4, "failure"), happen(A, 3), happen(B, 6))
    assert find_positions(dag, waiting) == [6]
    (due,) = find_due(dag, waiting)
    assert [cause.position for cause in due.causes] == [5, 6]
    decider.drop_before(waiting, 5)
    assert [list(pending.causes) for pending in waiting.values()] == [[6]]
    decider.drop_before(waiting, 6)
    assert waiting == {}


def test_two_of_one_upstream_and_one_of_the_other_are_one_run() -> None:
    dag = declare(A, B, when="all")
    waiting = read(dag, happen(A, 1), happen(A, 2), happen(B, 3))
    (due,) = find_due(dag, waiting)
    assert [cause.run_id for cause in due.causes] == ["run_2", "run_3"]
    drop_causes(waiting, due)
    assert waiting == {}


def test_what_waits_is_kept_when_the_dag_is_declared_otherwise() -> None:
    latest, each = declare(A, pass_upstream=True), declare(A, runs="each")
    waiting = read(each, happen(A, 2), waiting=reload(each, read(latest, happen(A, 1))))
    assert find_positions(each, waiting) == [1, 2]
    assert find_positions(latest, reload(latest, waiting)) == [2]


def test_failures_of_only_if_are_counted_for_each_event() -> None:
    dag = declare(A, pass_upstream=True)
    waiting: Waiting = {None: replace(read(dag, happen(A, 1))[None], failures=1)}
    assert read(dag, happen(B, 2), waiting=waiting)[None].failures == 1
    assert read(dag, happen(A, 3), waiting=waiting)[None].failures == 0


def test_a_cursor_is_read_as_it_was_written() -> None:
    by_day = PartitionMapping(DAYS, DAYS, "same", "all")
    dags = {
        "ä [1]": declare(A, B, when="all"),
        "b": declare(A, runs="each"),
        "c": replace(declare(A, runs="each"), mappings=[by_day]),
    }
    failing = replace(read(dags["ä [1]"], happen(A, 7))[None], failures=1)
    waiting: dict[str, Waiting] = {"ä [1]": {None: failing}}
    waiting["b"] = read(dags["b"], happen(A, 3), happen(A, 4))
    waiting["c"] = {"2026-01-01": waiting["b"][None], "2026-01-02": failing}
    followed = frozenset(each for dag in dags.values() for each in dag.fingerprints.values())
    cursor = Cursor(8, 0, frozenset({3, 4, 7}), waiting, followed)
    assert decider.load(decider.dump(cursor), dags) == cursor


def test_the_parts_of_a_cursor_that_have_another_form_are_left_out() -> None:
    dag = declare(A, when="all", only_if="math:isfinite")
    ((edge, dependency),) = dag.edges_by_name.items()
    states = {"c": [[None, [[0, 7, "run_7"]], 1], [None]], "of another form": 1, "d": {"e": []}}
    values = {"version": 9, "position": 8, "start": 0, "seen": [8], "known": "", "edges": [edge]}
    dags = {"c": dag, "of another form": dag, "d": dag}
    cursor = decider.load(json.dumps({**values, "dags": states}), dags)
    waiting: Waiting = {None: Pending({7: Cause(dependency, 7, "run_7")}, 1)}
    assert cursor == Cursor(8, 0, frozenset({8}), {"c": waiting})
    assert decider.load(json.dumps({**values, "dags": []}), dags) == Cursor(8, 0, frozenset({8}))


def test_upstreams_whose_fingerprints_are_the_same_all_count() -> None:
    first, second = "warehouse/load_09217", "warehouse/load_09249"
    dag = replace(declare(first, second), dag_id="customer_metrics")
    assert len(dag.fingerprints) == 2
    assert len(set(dag.fingerprints.values())) == 1, "the test needs two that are the same"
    assert find_positions(dag, read(dag, happen(first, 1))) == [1]


def test_an_event_that_counts_for_two_dependencies_is_one_run() -> None:
    dag = declare({"asset": ["a", "dag", "x"]}, {"dag": A, "state": "finished"}, runs="each")
    assert find_positions(dag, read(dag, happen(A, 1))) == [1]


def test_what_waits_for_dags_and_dependencies_that_are_gone_is_dropped_and_told_once() -> None:
    waiting = read(declare(A, B), happen(A, 1), happen(B, 2))
    text = decider.dump(Cursor(2, 0, dags={"c": waiting, "d": waiting}))
    cursor = decider.load(text, {"c": declare(B)})
    assert cursor
    assert cursor.dags == {"c": read(declare(B), happen(B, 2))}
    both = [f"{A} (success)", f"{B} (success)"]
    assert cursor.dropped == {"c": both[:1], "d": both}
    again = decider.load(decider.dump(cursor), {"c": declare(B)})
    assert again
    assert again.dropped == {}
    gone = decider.load(text, {"c": declare("a/z")})
    assert gone == Cursor(2, 0, dropped={"c": both, "d": both})


def test_thousands_that_wait_are_dropped_in_time_that_grows_with_their_number() -> None:
    """A comparison of each with each other would take minutes."""
    dag = declare(A, runs="each")
    waiting = read(dag, *(happen(A, number) for number in range(20_000)))
    for due in find_due(dag, waiting):
        drop_causes(waiting, due)
    assert waiting == {}


@pytest.mark.parametrize("state", ["slow", "late", "failure"])
def test_a_dependency_counts_its_own_state_only(state: str) -> None:
    dag = declare({"dag": A, "state": state}, runs="each")
    states = ["success", "failure", "slow", "late", "other"]
    events = [happen(A, number, each) for number, each in enumerate(states, 1)]
    assert find_positions(dag, read(dag, *events)) == [states.index(state) + 1]
