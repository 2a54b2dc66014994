"""The benchmarks can be started. `make soak` runs them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from importlib import import_module

import pytest

from tests.bench.fleet.measures import find_delays, find_longest_gaps
from tests.bench.fleet.sizes import SIZES

BENCHMARKS = [
    "automation",
    "client",
    "execute",
    "federating",
    "fleet.__main__",
    "latency",
    "observe",
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_describes_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"tests.bench.{name}").main()
    assert ended.value.code == 0
    assert "options:" in capsys.readouterr().out


@pytest.mark.parametrize("size", SIZES)
def test_each_downstream_dag_of_a_fleet_has_an_upstream_dag_of_its_own_in_another_instance(
    size: str,
) -> None:
    fleet = SIZES[size]
    assert len(fleet.upstreams) == fleet.edges
    assert all(upstream[0] != downstream[0] for downstream, upstream in fleet.upstreams.items())
    assert len({*fleet.upstreams, *fleet.upstreams.values()}) == 2 * fleet.edges
    per_instance = Counter(instance for instance, _ in fleet.upstreams).values()
    assert max(per_instance) - min(per_instance) <= 1


def test_the_delay_of_an_end_is_that_of_the_next_trigger_and_infinite_without_one() -> None:
    fleet = SIZES["XS"]
    (first, upstream), (second, other_upstream) = fleet.upstreams.items()
    at = {upstream: (50.0, 100.0), other_upstream: (100.0, 200.0)}
    notes = {
        "ends": [build_note(dag, moment) for dag, moments in at.items() for moment in moments],
        "triggers": [build_note(first, 90.0), build_note(first, 107.0), build_note(second, 130.0)],
    }
    assert find_delays(fleet, notes, began=60.0) == [7.0, 30.0, math.inf]


def build_note(dag: tuple[str, str], at: float) -> dict[str, object]:
    return {"instance": dag[0], "dag_id": dag[1], "at": at}


def test_a_time_without_polls_counts_from_the_beginning_and_to_the_end() -> None:
    moments = {"polled": [90.0, 104.0, 110.0], "early": [101.0], "late": [119.0], "never": [99.0]}
    spans = {name: [(at, at) for at in own] for name, own in moments.items()}
    assert find_longest_gaps(spans, began=100.0, ended=120.0) == [10.0, 19.0, 19.0, 20.0]


def test_the_time_of_a_long_tick_does_not_count() -> None:
    spans = {"long": [(90.0, 103.0), (104.0, 113.0), (115.0, 130.0)]}
    assert find_longest_gaps(spans, began=100.0, ended=120.0) == [2.0]
