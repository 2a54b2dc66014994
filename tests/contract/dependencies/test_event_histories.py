"""The event sensor beside a small model, in random histories: what the model says must run has run,
once, whatever ends, fails, is cleared, crashes and restarts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Airflow, OpenInstance
from tests.contract.dependencies.reacting import DAG, Player, find_cause, report

UPSTREAMS = ["warehouse/a", "warehouse/b"]
STATES = ["success", "failure", "finished", "slow", "late"]
SHAPES = ["any", "all"]
EVENTS = [
    *[f"{upstream} {state}" for upstream in "ab" for state in ("success", "failure")],
    *[
        "a slow",
        "b late",
        "a again",
        "finish",
        "finish",
        "tick",
        "tick",
        "tick",
        "crash",
        "restart",
    ],
]


@dataclass
class Model:
    """What has to run, by the words of the declaration."""

    dag: dict[str, Any]
    events: list[tuple[str, str, str]] = field(default_factory=list)  # upstream, state, run id
    latched: dict[tuple[str, str], int] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    active: list[str] = field(default_factory=list)  # labels of the runs that go on
    led: set[str] = field(default_factory=set)

    @property
    def trigger(self) -> dict[str, Any]:
        return {"reruns": "follow", "at_once": 1, **self.dag["trigger"]}

    def happen(self, upstream: str, state: str, run_id: str) -> None:
        self.events.append((upstream, state, run_id))
        for edge in self.dag["depends_on"]:
            name, wanted = edge["dag"], edge["state"]
            if name != upstream:
                continue
            matches = state in ("success", "failure") if wanted == "finished" else state == wanted
            if matches and self.trigger["runs"] == "each":
                self.queue.append(f"{name} {wanted} {run_id}")
                return
            if matches:
                self.latched[name, wanted] = len(self.events)
            elif {state, wanted} == {"success", "failure"} and self.trigger["when"] == "all":
                self.latched.pop((name, wanted), None)

    def tick(self) -> list[str]:
        """Return the labels of the runs that begin."""
        begun = []
        if self.trigger["runs"] == "latest":
            needed = len(self.dag["depends_on"]) if self.trigger["when"] == "all" else 1
            if len(self.latched) >= needed and not self.active:
                (name, state), number = max(self.latched.items(), key=lambda each: each[1])
                begun.append(f"{name} {state} {self.events[number - 1][2]}")
                self.latched.clear()
        while self.queue:
            label, rule = self.queue[0], self.trigger["reruns"]
            if rule == "ignore" and label in self.led:
                self.queue.pop(0)
                continue
            is_awaited = rule == "rerun" and label in self.active
            if len(self.active) + len(begun) >= self.trigger["at_once"] or is_awaited:
                break
            if rule == "rerun" and label in begun:
                break
            begun.append(self.queue.pop(0))
            self.led.add(label)
        self.active += begun
        return begun


def declare(
    shape: str, state: str, runs: str, reruns: str, at_once: int, other: str
) -> dict[str, Any]:
    trigger: dict[str, Any] = {"when": shape, "runs": runs, "pass_upstream": True}
    if runs == "each":
        trigger |= {"reruns": reruns, "at_once": at_once}
    edges = [{"dag": UPSTREAMS[0], "state": state}, {"dag": UPSTREAMS[1], "state": other}]
    return {"depends_on": edges, "trigger": trigger}


COMBINATIONS = [
    (shape, state, runs, reruns)
    for shape, state, runs, reruns in product(
        SHAPES, STATES, ("latest", "each"), ("follow", "ignore", "rerun")
    )
    if (runs == "each" and shape == "any") or (runs == "latest" and reruns == "follow")
]


# Each plays all that happens in some order: ends while a run goes on and when none does, the same
# run that ends again, slow and late, a crash before what follows is remembered, and a restart.
WHILE_ONE_RUNS = [
    *["a success", "b success", "a slow", "b late", "tick", "a failure", "a again", "tick"],
    *["finish", "tick", "b failure", "b success", "crash", "finish", "tick", "a success", "tick"],
]
AFTER_CRASHES = [
    *["a slow", "b late", "crash", "a failure", "b failure", "crash", "restart", "a again", "tick"],
    *["finish", "finish", "a success", "a again", "b success", "restart", "crash", "finish"],
    "tick",
]


@pytest.mark.parametrize(("shape", "state", "runs", "reruns"), COMBINATIONS)
@example(history=WHILE_ONE_RUNS, at_once=1, other="success")
@example(history=AFTER_CRASHES, at_once=2, other="finished")
@given(
    history=st.lists(st.sampled_from(EVENTS), max_size=20),
    at_once=st.integers(1, 2),
    other=st.sampled_from(STATES),
)
@settings(
    max_examples=int(os.environ.get("HISTORIES", "1")),  # the first is an empty history
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_the_model_runs_is_run_once(
    airflow_v2: Airflow,
    open_instance: OpenInstance,
    tmp_path: Path,
    shape: str,
    state: str,
    runs: str,
    reruns: str,
    history: list[str],
    at_once: int,
    other: str,
) -> None:
    dag = declare(shape, state, runs, reruns, at_once, other)
    airflow_v2.database.add_dag(DAG)
    with open_instance(tmp_path / uuid4().hex) as instance:
        model = Model(dag)
        player = Player(model, find_cause, airflow_v2.client, instance, {DAG: dag})
        for number, event in enumerate(["tick", *history]):
            play(player, model, event, f"run_{number}")
        while model.queue or model.active:
            player.play("finish")
            player.play("tick")
        player.play("tick")


def play(player: Player, model: Model, event: str, run_id: str) -> None:
    name, _, state = event.partition(" ")
    if not state:
        player.play(event)
        return
    upstream = f"warehouse/{name}"
    if state == "again":
        ended = [each for each in model.events if each[0] == upstream]
        if not ended:
            return
        _, state, run_id = ended[-1]
    report(player.instance, upstream, state, run_id)
    model.happen(upstream, state, run_id)
