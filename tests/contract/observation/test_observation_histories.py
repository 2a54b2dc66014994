"""Random histories of an Airflow with crashes, restarts and lost cursors: in the end, the event log
holds each finished run once and in order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from federation_defs.events import build_check_evaluation, build_materialization
from federation_defs.naming import build_asset_key
from federation_defs.observation import Limits
from federation_defs.observation.cursor import Cursor
from federation_defs.outcome import Outcome
from federation_defs.partitions import RunPartition
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import hang_up
from tests.contract.observation.daemon import Daemon, fetch_evaluations, fetch_reported_runs
from tests.contract.worlds import connect_to

DAGS = ("load_customers", "load_orders", "not_selected")
SELECTED = DAGS[:2]
OUTAGE = timedelta(days=1)
EXAMPLES = int(os.environ.get("HISTORIES", "15"))
STATES = st.sampled_from(["success", "failed"])
DAG_IDS = st.sampled_from(DAGS)
LOST_CURSORS = st.sampled_from([None, "", "no JSON", '{"version": 1}', '{"version":3,"since":5}'])

TALLY: Counter[str] = Counter()  # of all examples, for `make soak`

Ending = tuple[str, str, str, datetime]  # DAG id, run id, state, end


@dataclass
class Truth:
    """What happened in Airflow.

    Attributes:
        visible_at: The number of the first tick that can see an ending.
        is_edited: Runs whose row changed after their end. In a long history they may be reported
            later than their ends say.
    """

    visible_at: dict[Ending, int] = field(default_factory=dict)
    is_edited: set[tuple[str, str]] = field(default_factory=set)


class Histories(RuleBasedStateMachine):
    """A fake Airflow, what people and schedulers do there, and the daemon that observes it."""

    def __init__(self) -> None:
        super().__init__()
        self.instance = dg.DagsterInstance.ephemeral()
        self.truth = Truth()
        self.ticks = 0
        self.count = 0
        self.written: list[tuple[int, dg.AssetMaterialization]] = []

    @initialize(
        api=st.sampled_from(["v1", "v2"]),
        page=st.integers(1, 4),
        reports=st.sampled_from([2, 5, 400]),
        runs=st.sampled_from([3, 10, 2000]),
        skew_s=st.sampled_from([0, -1200, 1200]),
        history=st.lists(st.tuples(DAG_IDS, STATES, st.integers(130, 86_000)), max_size=12),
        has_outage=st.booleans(),
    )
    def begin(
        self,
        api: str,
        page: int,
        reports: int,
        runs: int,
        skew_s: int,
        history: Sequence[tuple[str, str, int]],
        has_outage: bool,
    ) -> None:
        """Start, possibly after an outage of a day during which some runs ended."""
        self.server = FakeAirflow(api)
        self.server.start()
        self.server.endpoints.page_limit = page
        self.database = self.server.database
        self.database.skew = timedelta(seconds=skew_s)
        for dag_id in DAGS:
            self.database.add_dag(dag_id)
        limits = Limits(runs=runs, reports=reports)
        client = connect_to(self.server)
        self.daemon = Daemon(client, SELECTED, self.instance, limits)
        if has_outage:
            self.end_run(before := self.start(DAGS[0]), "success", 87_000, 87_000)
            self.report(before)
            asked = min(self.database.now(), datetime.now(timezone.utc))
            self.daemon.cursor = Cursor(asked - OUTAGE).to_json()
            for dag_id, state, seconds_ago in history:
                self.end_run(self.start(dag_id), state, seconds_ago, seconds_ago)

    def teardown(self) -> None:
        try:
            if hasattr(self, "server"):
                self.catch_up_and_compare()
                TALLY.update(histories=1, runs=self.count, ticks=self.ticks)
        finally:
            if hasattr(self, "server"):
                self.server.stop()
            self.instance.dispose()

    def report(self, run: RunRow) -> None:
        """Report a run that was observed before the outage."""
        found = self.daemon.client.fetch_run(run.dag_id, run.run_id)
        assert found is not None
        client, outcome = self.daemon.client, Outcome(found, found.is_success)
        self.instance.report_runless_asset_event(build_check_evaluation(client, outcome))
        materialization = build_materialization(client, outcome, RunPartition())
        self.instance.report_runless_asset_event(materialization)

    def start(self, dag_id: str) -> RunRow:
        self.count += 1
        return self.database.start_run(dag_id, f"run {self.count}".replace(" ", "_"))

    def end_run(
        self, run: RunRow, state: str, ended_s_ago: float = 0, updated_s_ago: float = 0
    ) -> None:
        now = self.database.now()
        end = now - timedelta(seconds=ended_s_ago)
        # No two at the same moment: else any order of them would do.
        end += timedelta(microseconds=self.count)
        updated = now - timedelta(seconds=updated_s_ago)
        self.database.finish_run(run, state, end_date=end, updated_at=max(end, updated))
        self.note(run)

    def note(self, run: RunRow) -> None:
        if run.dag_id in SELECTED and run.end_date is not None and run.is_finished:
            ending = (run.dag_id, run.run_id, run.state, run.end_date)
            self.truth.visible_at.setdefault(ending, self.ticks + 1)

    def pick(self, data: int, *, is_finished: bool) -> RunRow | None:
        found = [run for run in self.database.runs if run.is_finished == is_finished]
        return found[data % len(found)] if found else None

    @rule(dag_id=DAG_IDS)
    def a_run_starts(self, dag_id: str) -> None:
        self.start(dag_id)

    @rule(data=st.integers(0, 99), state=STATES)
    def a_run_ends(self, data: int, state: str) -> None:
        if (run := self.pick(data, is_finished=False)) is not None:
            self.end_run(run, state)

    @rule(dag_id=DAG_IDS, state=STATES, seconds_ago=st.integers(0, 100))
    def a_run_appears_late(self, dag_id: str, state: str, seconds_ago: int) -> None:
        self.end_run(self.start(dag_id), state, seconds_ago, seconds_ago)

    @rule(data=st.integers(0, 99))
    def a_run_is_cleared(self, data: int) -> None:
        if (run := self.pick(data, is_finished=True)) is not None:
            self.database.clear(run)

    @rule(data=st.integers(0, 99), state=STATES)
    def a_person_sets_a_state(self, data: int, state: str) -> None:
        if (run := self.pick(data, is_finished=True)) is not None:
            self.database.set_state(run, state)
            self.truth.is_edited.add((run.dag_id, run.run_id))
            self.note(run)

    @rule(data=st.integers(0, 99))
    def a_run_is_deleted(self, data: int) -> None:
        if (run := self.pick(data, is_finished=True)) is not None:
            self.database.delete_run(run)

    @rule()
    def a_tick(self) -> None:
        self.tick()

    @rule(stored=st.integers(0, 5))
    def dagster_is_killed_amid_the_events(self, stored: int) -> None:
        self.tick(killed_after=stored)

    @rule()
    def dagster_is_killed_before_the_cursor(self) -> None:
        self.tick(crashes=True)
        self.daemon.restart()

    @rule()
    def two_ticks_overlap(self) -> None:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: self.daemon.evaluate(), range(2)))
        self.ticks += 1
        self.note_written()

    @rule()
    def the_code_server_starts_anew(self) -> None:
        self.daemon.restart()

    @rule(cursor=LOST_CURSORS)
    def the_cursor_is_lost(self, cursor: str | None) -> None:
        self.daemon.cursor = cursor

    @rule(times=st.sampled_from([1, 1, 1, 4]))
    @precondition(lambda self: self.ticks)
    def airflow_hangs_up(self, times: int) -> None:
        self.server.fail_next(asks("GET", ".*/dagRuns"), hang_up, times)
        self.tick()
        self.server.forget_faults()
        self.daemon.restart()  # which ends the pause between polls

    def tick(self, *, crashes: bool = False, killed_after: int | None = None) -> bool:
        """Evaluate the sensor, and return whether events were stored."""
        self.ticks += 1
        self.daemon.tick(crashes=crashes, killed_after=killed_after)
        return self.note_written()

    def note_written(self) -> bool:
        stored = self.daemon.stored
        written = [event for event in stored if isinstance(event, dg.AssetMaterialization)]
        self.written += [(self.ticks, event) for event in written]
        return bool(stored)

    def catch_up_and_compare(self) -> None:
        self.daemon.restart()
        quiet = 0
        for _ in range(300):
            quiet = 0 if self.tick() else quiet + 1
            if quiet > 10:  # a slice of a long history may hold no selected run
                break
        else:
            raise AssertionError("it reports events for ever")
        for dag_id in SELECTED:
            self.compare_materializations(dag_id)
            self.compare_evaluations(dag_id)

    def compare_materializations(self, dag_id: str) -> None:
        reported = fetch_reported_runs(self.instance, build_asset_key("metrics", dag_id))
        seen = Counter((str(event["Run ID"].value), event["End"].value) for event in reported)
        happened = {
            (run_id, end.timestamp())
            for dag, run_id, state, end in self.truth.visible_at
            if (dag, state) == (dag_id, "success")
        }
        there = {
            (run.run_id, run.end_date.timestamp())
            for run in self.database.runs
            if run.dag_id == dag_id and run.state == "success" and run.end_date
        }
        assert seen.keys() <= happened, "something never happened"
        assert there <= seen.keys(), "something was lost"
        assert set(seen.values()) <= {1}, "something was reported twice"

    def compare_evaluations(self, dag_id: str) -> None:
        found = fetch_evaluations(self.instance, build_asset_key("metrics", dag_id))
        by_run: dict[str, list[tuple[Any, Any]]] = {}
        for evaluation in found:
            state, end = evaluation.metadata["State"].value, evaluation.metadata["End"].value
            run_id = str(evaluation.metadata["Run ID"].value)
            by_run.setdefault(run_id, []).append((state, end))
            assert evaluation.passed == (state == "success")
        for run in self.database.runs:
            if run.dag_id == dag_id and run.is_finished and run.end_date:
                assert by_run[run.run_id][-1] == (run.state, run.end_date.timestamp())

    @invariant()
    def order_is_kept(self) -> None:
        """No run is reported before one that ended earlier and was visible by then."""
        reported = [
            (tick, event.asset_key.path[-1], str(event.metadata["Run ID"].value), at.value)
            for tick, event in self.written
            if isinstance(at := event.metadata["End"], dg.TimestampMetadataValue)
        ]
        seen = {(dag, run_id, end.timestamp()): at for (dag, run_id, _, end), at in self.visible()}
        for place, (tick, dag_id, _, end) in enumerate(reported):
            for _, later_dag, later_run, later_end in reported[place + 1 :]:
                is_edited = (later_dag, later_run) in self.truth.is_edited
                if later_dag == dag_id and later_end < end and not is_edited:
                    assert seen[(later_dag, later_run, later_end)] > tick, (later_run, reported)

    def visible(self) -> list[tuple[Ending, int]]:
        """Return the endings that are successes, and when they were first visible."""
        return [found for found in self.truth.visible_at.items() if found[0][2] == "success"]


Histories.TestCase.settings = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=15,
    database=None,
    # Shrinking takes minutes; `HISTORIES=0` is for debugging a failure.
    phases=[Phase.generate] if EXAMPLES else list(Phase),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestHistories(Histories.TestCase):
    @classmethod
    def tearDownClass(cls) -> None:
        reported = ", ".join(f"{count} {what}" for what, count in TALLY.items())
        print(f"\nRuns that were reported once and in order: {reported}.")  # noqa: T201 - a figure of `make soak`
