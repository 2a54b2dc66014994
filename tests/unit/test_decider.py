"""Which events start a run, by their positions in the event log."""

from __future__ import annotations

from typing import Any

import pytest
from dagster._core.definitions.events import AssetMaterialization

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import WINDOW, DagState, find_due, settle, take_in
from federation_defs.naming import build_asset_key

A, B = "a/x", "b/y"


def declare(*upstreams: str, **trigger: Any) -> DagDeclaration:
    return DagDeclaration.model_validate({"depends_on": list(upstreams), "trigger": trigger})


def happen(upstream: str, position: int, state: Any = "success") -> AssetEvent:
    key = build_asset_key(*upstream.split("/"))
    record: Any = AssetMaterialization(key)
    return AssetEvent(position, key, state, f"run_{position}", record)


def find_positions(dag: DagDeclaration, state: DagState, *events: AssetEvent) -> list[int]:
    return [causes[-1].position for causes in find_due(dag, state, events)]


def test_an_event_that_becomes_visible_after_a_later_one_counts_once() -> None:
    dag, state = declare(A, runs="each"), DagState()
    (causes,) = find_due(dag, state, [happen(A, 10)])
    state = settle(state, causes)
    assert find_positions(dag, state, happen(A, 9), happen(A, 10)) == [9]
    state = settle(state, find_due(dag, state, [happen(A, 9)])[0])
    assert find_positions(dag, state, happen(A, 9), happen(A, 10)) == []


def test_what_is_remembered_does_not_grow() -> None:
    dag, state = declare(A, runs="each"), DagState()
    for position in range(0, 100_000, 50):
        event = happen(A, position + 1)
        state = settle(state, find_due(dag, state, [event])[0])
    assert len(state.taken) <= WINDOW / 50
    state = DagState()
    dag = declare(A, B, when="all")
    for position in range(0, 100_000, 50):
        state = take_in(dag, state, happen(A, position + 1))
    assert len(state.taken) <= WINDOW / 50
    assert len(state.latched) == 1


def test_two_of_one_upstream_and_one_of_the_other_are_one_run() -> None:
    dag, state = declare(A, B, when="all"), DagState()
    for event in (happen(A, 1), happen(A, 2), happen(B, 3)):
        state = take_in(dag, state, event)
    ((first, second),) = find_due(dag, state, [])
    assert (first.run_id, second.run_id) == ("run_2", "run_3")
    assert find_due(dag, settle(state, [first, second]), []) == []


def test_what_waited_by_an_earlier_declaration_waits_on() -> None:
    state = take_in(declare(A, pass_upstream=True), DagState(), happen(A, 1))
    assert find_positions(declare(A, runs="each"), state, happen(A, 2)) == [1, 2]
    assert find_positions(declare(B), state) == []


def test_a_cursor_is_read_as_it_was_written() -> None:
    dag = declare(A, B, when="all")
    state = take_in(dag, DagState({"any": 3}, failures=2), happen(A, 7))
    assert decider.load(decider.dump({"ä [1]": state})) == {"ä [1]": state}


@pytest.mark.parametrize("state", ["slow", "late", "failure"])
def test_a_dependency_counts_its_own_state_only(state: str) -> None:
    dag = DagDeclaration.model_validate(
        {"depends_on": [{"dag": A, "state": state}], "trigger": {"runs": "each"}}
    )
    states = ["success", "failure", "slow", "late"]
    events = [happen(A, number, each) for number, each in enumerate(states, 1)]
    assert find_positions(dag, DagState(), *events) == [states.index(state) + 1]
