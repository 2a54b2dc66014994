"""What starts a DAG of one Airflow after something happened in the other, a test for each feature.

One sequence of upstream runs feeds all of them: `act` makes it, if possible during the tests of
other modules, and the tests look at what followed and did not follow (`steered.py` has the
declarations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.naming import (
    DEADLINE_CHECK_NAME,
    MAX_DURATION_CHECK_NAME,
    READY_CHECK_NAME,
    RUN_ID_PREFIX,
    build_asset_key,
)
from tests.contract.observation.daemon import fetch_evaluations
from tests.live.dagster_api import Materialization
from tests.live.federation import (
    PACED,
    Federation,
    fetch_runs,
    trigger,
    utc_now,
    wait_for_state,
)
from tests.live.steered import LATE, LONG, OFTEN, REPORT, STEERED
from tests.waiting import wait_for


@dataclass(frozen=True)
class Reactions:
    """What happened upstream, in this order, and what came of it.

    Attributes:
        since: From just before the first upstream run.
        first: A success, which `only_if` skips.
        failed: A failure.
        often: The ids of successes of a DAG that ended at about the same time.
        cleared: The run that failed, which was cleared and has failed again.
        second: Another success.
        long: A run that went on from the beginning until its slowness had led to another one.
    """

    federation: Federation
    since: datetime
    first: DagRun
    failed: DagRun
    often: list[str]
    cleared: DagRun
    second: DagRun
    long: DagRun

    def wait_for_reports(
        self, dag_id: str, count: int, name: str = "metrics"
    ) -> list[Materialization]:
        """Return this many reports of a DAG's successes, in their order. Check that no more follow,
        and that the DAG has no other runs."""
        reports = wait_for_reports(self.federation, name, dag_id, count, self.since)
        runs = fetch_runs(self.federation.clients[name], self.since, {dag_id})
        assert {run.run_id for run in runs} == {report.run_id for report in reports}
        return reports

    def find_request(self, run: DagRun) -> datetime:
        """Return when the Dagster run was created that started a DAG run."""
        dagster_run_id = run.run_id.removeprefix(RUN_ID_PREFIX)
        record = self.federation.event_log.get_run_record_by_id(dagster_run_id)
        assert record
        return record.create_timestamp

    def wait_for_runs(self, dag_id: str, count: int, name: str = "metrics") -> list[DagRun]:
        """Return this many successful runs of a DAG, as `wait_for_reports`, each ended once."""
        reports = self.wait_for_reports(dag_id, count, name)
        runs = [fetch_run(self.federation.clients[name], dag_id, each.run_id) for each in reports]
        assert len({run.run_id for run in runs}) == count
        return runs


def wait_for_reports(
    federation: Federation, name: str, dag_id: str, count: int, since: datetime
) -> list[Materialization]:
    """Return this many reports of a DAG's successes when no more can follow, in their order."""

    def list_reports() -> list[Materialization]:
        return federation.fetch_materializations(name, dag_id, since)[::-1]

    what = f"{count} successes of {dag_id} are reported"
    wait_for(lambda: len(list_reports()) >= count, what, timeout_s=300)
    last = datetime.fromtimestamp(list_reports()[-1].timestamp, timezone.utc)
    federation.wait_for_ticks(since=last)
    federation.wait_until_idle(name, dag_id)
    reports = list_reports()
    assert len(reports) == count
    return reports


def fetch_run(client: AirflowClient, dag_id: str, run_id: str) -> DagRun:
    run = client.fetch_run(dag_id, run_id)
    assert run
    return run


def read_causes(run: DagRun) -> list[dict[str, Any]]:
    """Return what the conf of a run says about the upstream runs that led to it."""
    return run.conf["federation"]["upstream"]


def list_causes(runs: list[DagRun]) -> list[tuple[str, str]]:
    """Return state and run id of what led to each run, which is one upstream run."""
    causes = [read_causes(run) for run in runs]
    return [(cause["state"], cause["run_id"]) for (cause,) in causes]


def assert_follow(*runs: DagRun) -> None:
    """Check that each run started after the end of the one before."""
    for before, after in pairwise(runs):
        assert before.end_date
        assert after.start_date
        assert before.end_date < after.start_date


@pytest.fixture(scope="module")
def reactions(actions: Mapping[str, Future[Any]]) -> Reactions:
    return actions[__name__].result()


def act(federation: Federation, folder: Path) -> Reactions:
    warehouse = federation.clients["warehouse"]
    go_on = folder / "go_on"

    def run_steered(state: str, **conf: object) -> DagRun:
        return wait_for_state(warehouse, STEERED, trigger(warehouse, STEERED, **conf), state)

    federation.wait_for_ticks(1)  # what is before a sensor's first tick counts for nothing
    since = utc_now()
    trigger(warehouse, "load_products")
    long_id = trigger(warehouse, LONG, until=str(go_on))
    try:
        first = run_steered("success", skip=True)
        failed = run_steered("failed", fail=True)
        often = [trigger(warehouse, OFTEN, number=number) for number in range(3)]
        # One tick requests all that the failure starts.
        wait_for(lambda: bool(federation.dagster.fetch_runs("react_failure")), "it is requested")
        trigger(warehouse, "load_sales")
        warehouse.clear_run(*failed.key)
        cleared = wait_for(lambda: find_later_end(warehouse, failed), "it has failed again")
        second = run_steered("success")
        wait_for_first_reports(federation, "react_slow", 1)
    finally:
        go_on.touch()
    long = wait_for_state(warehouse, LONG, long_id, "success")
    return Reactions(federation, since, first, failed, often, cleared, second, long)


def wait_for_first_reports(
    federation: Federation, dag_id: str, count: int
) -> list[Materialization]:
    """Return the successes of a DAG in metrics, the oldest first, when so many are reported."""

    def find() -> list[Materialization] | None:
        found = federation.dagster.fetch_materializations("metrics", dag_id)[::-1]
        return found if len(found) >= count else None

    return wait_for(find, f"{dag_id} has run {count} times", timeout_s=420)


def find_later_end(client: AirflowClient, before: DagRun) -> DagRun | None:
    run = fetch_run(client, *before.key)
    assert before.end_date
    is_later = run.end_date is not None and run.end_date > before.end_date
    return run if run.state == before.state and is_later else None


def test_a_failure_starts_a_run_and_another_one_when_the_run_fails_again(
    reactions: Reactions,
) -> None:
    runs = reactions.wait_for_runs("react_failure", 2)
    failure = ("failure", reactions.failed.run_id)
    assert list_causes(runs) == [failure, failure]
    ends = [datetime.fromisoformat(read_causes(run)[0]["end"]) for run in runs]
    assert ends == [reactions.failed.end_date, reactions.cleared.end_date]


def test_a_slow_run_starts_a_run_while_it_goes_on(reactions: Reactions) -> None:
    runs = reactions.wait_for_runs("react_slow", 1)
    assert list_causes(runs) == [("slow", reactions.long.run_id)]
    assert runs[0].end_date
    assert reactions.long.end_date
    assert runs[0].end_date < reactions.long.end_date
    key = build_asset_key("warehouse", LONG)
    checks = fetch_evaluations(reactions.federation.event_log, key, MAX_DURATION_CHECK_NAME)
    assert [check.passed for check in checks] == [False, False]  # while it went on, and at its end


def test_each_of_several_upstream_runs_starts_a_run_in_their_order_one_at_a_time(
    reactions: Reactions,
) -> None:
    runs = reactions.wait_for_runs("react_each", 3)
    seen = reactions.federation.fetch_materializations("warehouse", OFTEN, reactions.since)[::-1]
    assert Counter(report.run_id for report in seen) == Counter(reactions.often)
    assert list_causes(runs) == [("success", report.run_id) for report in seen]
    for before, after in pairwise(runs):
        assert before.end_date
        assert before.end_date < reactions.find_request(after)


def test_the_conf_of_a_run_tells_of_the_upstream_run_and_has_what_is_declared(
    reactions: Reactions,
) -> None:
    warehouse = reactions.federation.clients["warehouse"]
    numbers = []
    for run in reactions.wait_for_runs("react_each", 3):
        assert run.conf.keys() == {"declared", "federation"}
        (cause,) = read_causes(run)
        upstream = fetch_run(warehouse, OFTEN, cause["run_id"])
        assert (cause["upstream"], cause["conf"]) == (f"warehouse/{OFTEN}", upstream.conf)
        dates = upstream.logical_date, upstream.data_interval_start, upstream.end_date
        names = ("logical_date", "data_interval_start", "end")
        assert tuple(datetime.fromisoformat(cause[name]) for name in names) == dates
        numbers.append(upstream.conf["number"])
    assert sorted(numbers) == [0, 1, 2]


def test_the_same_run_runs_again_when_the_upstream_run_does(reactions: Reactions) -> None:
    """With `reruns: rerun`."""
    first, second = reactions.wait_for_reports("react_date", 2)
    assert first.run_id == second.run_id
    assert reactions.failed.end_date
    assert reactions.cleared.end_date
    assert reactions.failed.end_date.timestamp() < first.metadata["End"]
    assert reactions.cleared.end_date.timestamp() < second.metadata["End"]
    assert first.metadata["End"] < second.metadata["End"]


def test_a_run_has_the_logical_date_of_the_upstream_run(reactions: Reactions) -> None:
    first, _ = reactions.wait_for_reports("react_date", 2)
    run = fetch_run(reactions.federation.clients["metrics"], "react_date", first.run_id)
    assert run.logical_date == reactions.failed.logical_date


def test_an_upstream_run_that_runs_again_starts_nothing_if_that_is_ignored(
    reactions: Reactions,
) -> None:
    reactions.wait_for_runs("react_failure", 2)  # the second one for the same event
    reactions.wait_for_runs("react_ignore", 1)


def test_a_function_of_the_project_decides_about_any_end_of_a_run(reactions: Reactions) -> None:
    """With `state: finished` and `only_if`."""
    skipped, failed, second = reactions.first, reactions.failed, reactions.second
    runs = reactions.wait_for_runs("react_if", 3)
    asked = [("failure", failed.run_id), ("failure", failed.run_id), ("success", second.run_id)]
    assert [tuple(run.conf["asked_about"]) for run in runs] == asked
    key = build_asset_key("metrics", "react_if")
    records = reactions.federation.event_log.fetch_observations(key, limit=100).records[::-1]
    events = [record.asset_event for record in records]
    answers = [
        (event.metadata["Upstream run"].value, event.metadata["only_if"].value)
        for event in events
        if event and "only_if" in event.metadata
    ]
    assert answers == [
        (skipped.run_id, "`only_if` says: its conf says so"),
        *((run_id, "`only_if` says: run") for _, run_id in asked),
    ]


def test_a_run_starts_when_all_upstreams_have_succeeded_and_none_has_failed_since(
    reactions: Reactions,
) -> None:
    (run,) = reactions.wait_for_runs("react_all", 1)
    assert_follow(reactions.second, run)


def test_a_chain_leads_back_to_the_first_airflow(reactions: Reactions) -> None:
    (run,) = reactions.wait_for_runs("react_all", 1)
    (back,) = reactions.wait_for_runs("react_back", 1, "warehouse")
    assert_follow(run, back)


def test_a_dagster_asset_follows_a_dag_and_is_followed_by_one(reactions: Reactions) -> None:
    (run,) = reactions.wait_for_runs("react_asset", 1)
    (report,) = reactions.federation.event_log.fetch_materializations(REPORT, limit=10).records
    assert reactions.long.end_date
    assert run.start_date
    assert reactions.long.end_date.timestamp() < report.timestamp < run.start_date.timestamp()


def test_the_demos_fan_in_runs_after_both_loads_and_leads_back(reactions: Reactions) -> None:
    (last,) = reactions.wait_for_runs("load_sales", 1, "warehouse")
    (run,) = reactions.wait_for_runs("category_metrics", 1)
    (back,) = reactions.wait_for_runs("export_category_metrics", 1, "warehouse")
    assert_follow(last, run, back)


def test_each_missed_deadline_starts_a_run(federation: Federation) -> None:
    client = federation.clients["metrics"]
    reports = wait_for_first_reports(federation, "react_late", 2)
    causes = [read_causes(fetch_run(client, "react_late", each.run_id)) for each in reports]
    assert {(cause["state"], cause["run_id"]) for (cause,) in causes} == {("late", None)}
    deadlines = [datetime.fromisoformat(cause["deadline"]) for (cause,) in causes]
    assert deadlines[0].minute % 2 == deadlines[0].second == 0
    assert {after - before for before, after in pairwise(deadlines)} == {timedelta(minutes=2)}
    key = build_asset_key("warehouse", LATE)
    checks = fetch_evaluations(federation.event_log, key, DEADLINE_CHECK_NAME)
    assert {check.passed for check in checks} == {False}


def test_a_check_names_an_upstream_that_has_never_succeeded(federation: Federation) -> None:
    key = build_asset_key("metrics", PACED)
    checks = wait_for(
        lambda: fetch_evaluations(federation.event_log, key, READY_CHECK_NAME) or None,
        "the check is evaluated",
    )
    assert {(check.passed, check.description) for check in checks} == {
        (False, "warehouse/never has never succeeded.")
    }
