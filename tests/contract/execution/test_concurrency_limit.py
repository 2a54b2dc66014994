"""How many DAG runs Dagster has active at a time: `limits.max_active_runs`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import (
    FAST,
    DagsterJob,
    fail_after,
    materialize,
    meanwhile,
    wait_for_log,
)
from tests.contract.execution.interrupting import before_acting, cancel, force_cancel
from tests.contract.execution.partitioned import DAG, at, declare, of_range
from tests.contract.fakes.airflow import Predicate, asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Act, Fault, answer
from tests.waiting import wait_for

POST = asks("POST", "/dags/[^/]+/dagRuns")
LIST = "/dags/~/dagRuns"
FIVE = [f"dag_{number}" for number in range(5)]
DAYS = [f"2025-02-0{day}" for day in range(3, 8)]


class Counting:
    """Counts the active runs whenever one more is triggered, or another request is answered.

    The first response is held back until two are active, so that no run ends before.
    """

    def __init__(self, airflow: Airflow, request: Predicate = POST) -> None:
        self.most = 0
        self._database = airflow.database
        self._is_first = True
        airflow.server.fail_next(request, self, times=99)

    def __call__(self, act: Act) -> Response:
        is_first, self._is_first = self._is_first, False
        response = act()
        self._count()
        if is_first:
            wait_for(lambda: self._count() >= 2, "two runs are active", interval_s=0.01)
        return response

    def _count(self) -> int:
        count = sum(not run.is_finished for run in self._database.runs)
        self.most = max(self.most, count)
        return count


def add_dags(airflow: Airflow, dag_ids: Sequence[str], polls: float | None = 3) -> None:
    for dag_id in dag_ids:
        airflow.database.add_dag(dag_id, polls=polls)


def declare_detached(dag_ids: Sequence[str]) -> dict[str, Any]:
    return {dag_id: {"trigger": {"wait": False}} for dag_id in dag_ids}


def start_other(airflow: Airflow, state: str = "running") -> RunRow:
    """An active run of another Dagster run."""
    airflow.database.add_dag("other", polls=None)
    return airflow.database.start_run("other", f"dagster__{uuid4()}", state)


def wait_for_questions(airflow: Airflow, count: int) -> None:
    """Until Airflow was asked so many times more for its active runs."""
    until = airflow.server.count("GET", LIST) + count
    wait_for(lambda: airflow.server.count("GET", LIST) >= until, "asked again", interval_s=0.02)


def test_no_more_runs_are_active_than_are_allowed_and_all_are_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow, FIVE)
    counting = Counting(airflow)
    executed = materialize(airflow.client, FIVE, instance, max_active_runs=2)
    assert sorted(executed.materialized) == FIVE
    assert counting.most == 2
    assert len([line for line in executed.log if "waits for a slot" in line]) == 3


def test_runs_of_other_dagster_runs_count(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    other = start_other(airflow)
    add_dags(airflow, FIVE[:1], polls=0)

    def end_other() -> None:
        wait_for_log(instance, "waits for a slot")
        wait_for_questions(airflow, 2)
        assert len(airflow.database.runs) == 1
        airflow.database.finish_run(other)

    with meanwhile(end_other):
        executed = materialize(airflow.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


def test_runs_that_dagster_did_not_launch_do_not_count(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag("scheduled")
    for _ in range(3):
        airflow.database.start_run("scheduled", run_type="scheduled")
    airflow.database.start_run("scheduled", "dagster_by_hand")  # not quite the prefix
    add_dags(airflow, FIVE[:1], polls=0)
    executed = materialize(airflow.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]
    assert not any("waits for a slot" in line for line in executed.log)


def test_without_a_limit_all_are_launched_and_nothing_is_asked(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE, polls=math.inf)
    assert materialize(airflow_v2.client, declare_detached(FIVE), instance).success
    assert len(airflow_v2.database.runs) == 5
    assert airflow_v2.server.count("GET", LIST) == 0


def test_the_time_out_of_a_run_begins_with_its_turn(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    other = start_other(airflow_v2)
    add_dags(airflow_v2, FIVE[:1], polls=0)
    waited = airflow_v2.database.now() + timedelta(seconds=1)

    def end_other() -> None:
        wait_for_log(instance, "waits for a slot")
        wait_for(lambda: airflow_v2.database.now() > waited, "a second", interval_s=0.05)
        airflow_v2.database.finish_run(other)

    declared = {FIVE[0]: {"trigger": {"timeout": "0.5s"}}}
    with meanwhile(end_other):
        executed = materialize(airflow_v2.client, declared, instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


def test_a_place_is_free_after_a_failure(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    add_dags(airflow_v2, FIVE, polls=0)
    airflow_v2.database.dags[FIVE[0]].outcome = "failed"
    airflow_v2.database.dags[FIVE[1]].is_paused = True
    executed = materialize(airflow_v2.client, FIVE, instance, max_active_runs=1)
    assert sorted(executed.materialized) == FIVE[2:]


def test_a_run_that_is_canceled_before_its_turn_triggers_nothing(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    start_other(airflow_v2)
    add_dags(airflow_v2, FIVE[:1])

    def give_up() -> None:
        wait_for_log(instance, "waits for a slot")
        cancel(instance)

    with meanwhile(give_up):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert [run.dag_id for run in airflow_v2.database.runs] == ["other"]


def test_a_cancellation_stops_what_has_its_place_and_launches_none_of_the_others(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE, polls=math.inf)
    canceled = before_acting(partial(cancel, instance))
    airflow_v2.server.fail_next(asks("GET", "/dags/[^~/]+/dagRuns/[^/]+"), canceled)
    executed = materialize(airflow_v2.client, FIVE, instance, max_active_runs=1)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert [run.state for run in airflow_v2.database.runs] == ["failed"]


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_run_that_is_forced_to_be_canceled_launches_nothing_more(
    airflow_v2: Airflow, instance: dg.DagsterInstance, executor: str
) -> None:
    """Dagster sends its worker no signal. Of a step with a process of its own, it needs a failure:
    it takes an interruption for a crash of the worker, and retries the run."""
    add_dags(airflow_v2, FIVE, polls=math.inf)
    forced = before_acting(partial(force_cancel, instance))
    airflow_v2.server.fail_next(asks("GET", "/dags/[^~/]+/dagRuns/[^/]+"), forced)
    job = DagsterJob(airflow_v2.client, FIVE, instance, max_active_runs=1, executor=executor)
    executed = job.execute()
    run = instance.get_run_by_id(executed.run_id)
    assert run is not None
    if executor == "in_process":
        assert run.status is dg.DagsterRunStatus.CANCELED
    else:
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert run.tags["dagster/failure_reason"] == "STEP_FAILURE"
    assert [run.state for run in airflow_v2.database.runs] == ["failed"]
    assert not any("retry" in line for line in executed.log)


def test_detached_runs_count_until_they_end(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    add_dags(airflow, FIVE)
    counting = Counting(airflow)
    executed = materialize(airflow.client, declare_detached(FIVE), instance, max_active_runs=2)
    assert executed.success
    assert counting.most == 2
    assert len(airflow.database.runs) == 5


def test_a_detached_run_counts_before_airflow_lists_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE[:2], polls=None)
    empty = answer(200, {"dag_runs": [], "total_entries": 0})
    airflow_v2.server.fail_next(asks("GET", LIST), empty, times=999)

    def list_then_end() -> None:
        wait_for(lambda: bool(airflow_v2.database.runs), "one is launched", interval_s=0.02)
        wait_for_questions(airflow_v2, 2)
        (run,) = airflow_v2.database.runs
        airflow_v2.server.forget_faults()
        wait_for_questions(airflow_v2, 2)
        airflow_v2.database.finish_run(run)

    dags, timing = declare_detached(FIVE[:2]), replace(FAST, launch_visible_s=60.0)
    with meanwhile(list_then_end):
        executed = materialize(airflow_v2.client, dags, instance, max_active_runs=1, timing=timing)
    assert executed.success
    assert len(airflow_v2.database.runs) == 2


def end(airflow: Airflow, run: RunRow) -> None:
    airflow.database.finish_run(run, "failed")


def delete(airflow: Airflow, run: RunRow) -> None:
    airflow.database.delete_run(run)


def pause(airflow: Airflow, run: RunRow) -> None:
    airflow.database.dags[run.dag_id].is_paused = True


def remove_dag(airflow: Airflow, run: RunRow) -> None:
    airflow.database.dags[run.dag_id].is_present = False


def grow_old(airflow: Airflow, run: RunRow) -> None:
    """Beyond the time-out of a DAG for which none is declared, a day."""
    run.queued_at = airflow.database.now() - timedelta(days=2)


@pytest.mark.parametrize("happens", [end, delete, pause, remove_dag, grow_old])
def test_a_queued_run_counts_until_it_ends_or_can_not_go_on(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    happens: Callable[[Airflow, RunRow], None],
) -> None:
    other = start_other(airflow_v2, "queued")
    add_dags(airflow_v2, FIVE[:1], polls=0)

    def act() -> None:
        wait_for_log(instance, "waits for a slot")
        wait_for_questions(airflow_v2, 2)
        assert len(airflow_v2.database.runs) == 1
        happens(airflow_v2, other)

    with meanwhile(act):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


def test_a_running_run_counts_though_its_dag_is_paused(airflow_v2: Airflow) -> None:
    other = start_other(airflow_v2)
    pause(airflow_v2, other)
    limit = ConcurrencyLimit(airflow_v2.client, {}, 1, Timing())
    assert limit.reserve([("dag", "dagster__1")]) == set()


def test_an_old_run_of_airflow_2_counts_no_longer_than_its_time_out_from_its_start(
    start_airflow: Callable[..., Airflow],
) -> None:
    airflow = start_airflow("v1")
    other = start_other(airflow)
    limit = ConcurrencyLimit(airflow.client, {}, 1, Timing())
    assert limit.reserve([("dag", "dagster__1")]) == set()
    other.start_date = airflow.database.now() - timedelta(days=2)
    assert limit.reserve([("dag", "dagster__1")]) == {("dag", "dagster__1")}


@pytest.mark.parametrize("page", [f"{LIST}", "/dags/[^~/]+"], ids=["runs", "dags"])
def test_nothing_is_launched_while_the_active_runs_can_not_be_read(
    airflow_v2: Airflow, instance: dg.DagsterInstance, page: str
) -> None:
    other = start_other(airflow_v2, "queued")
    pause(airflow_v2, other)
    add_dags(airflow_v2, FIVE[:1], polls=0)
    airflow_v2.server.fail_next(asks("GET", page), answer(503, headers={"Retry-After": "999"}), 999)

    def act() -> None:
        wait_for_log(instance, "Dagster keeps waiting.")
        assert len(airflow_v2.database.runs) == 1
        airflow_v2.server.forget_faults()

    with meanwhile(act):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


FORBIDDEN = answer(403, {"detail": "Forbidden"})


def test_a_missing_permission_to_list_runs_ends_the_wait_for_a_place(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE[:1])
    airflow_v2.server.fail_next(asks("GET", LIST), FORBIDDEN, times=10_000)
    executed = materialize(
        airflow_v2.client, FIVE[:1], instance, max_active_runs=1, timing=fail_after(0.2)
    )
    assert "forbids GET /api/v2/dags/~/dagRuns" in (executed.failure or "")
    assert airflow_v2.database.runs == []


@pytest.mark.parametrize("fault", [FORBIDDEN, answer(401, {}), answer(200, "<html>a page</html>")])
def test_an_odd_answer_while_runs_wait_for_a_place_ends_none_of_them(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Fault
) -> None:
    add_dags(airflow_v2, FIVE)
    airflow_v2.server.fail_next(asks("GET", LIST), fault, times=2)
    assert materialize(airflow_v2.client, FIVE, instance, max_active_runs=2).success
    assert len(airflow_v2.database.runs) == 5


def test_an_outage_longer_than_the_time_out_does_not_end_the_wait_for_a_place(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE[:1], polls=0)
    declared = {dag_id: {"trigger": {"timeout": "1s"}} for dag_id in FIVE[:1]}
    asked: list[float] = []

    def is_away(act: Act) -> Response | None:
        asked.append(time.monotonic())
        return answer(503, "away")(act) if asked[-1] - asked[0] < 1.5 else act()

    airflow_v2.server.fail_next(asks("GET", LIST), is_away, times=10_000)
    assert materialize(airflow_v2.client, declared, instance, max_active_runs=1).success
    assert asked[-1] - asked[0] >= 1.5


def test_dates_that_ran_by_a_schedule_are_cleared_no_more_than_the_limit_at_a_time(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=3)
    for day in DAYS:
        interval = (at(day), at(day) + timedelta(days=1))
        columns: dict[str, Any] = {"run_type": "scheduled", "data_interval": interval}
        run = airflow_v2.database.start_run(
            dag.dag_id, f"scheduled__{day}", logical_date=at(day), **columns
        )
        airflow_v2.database.finish_run(run)
    counting = Counting(airflow_v2, asks("POST", f"/dags/{DAG}/dagRuns/[^/]+/clear"))
    executed = materialize(
        airflow_v2.client,
        {DAG: declare()},
        instance,
        tags=of_range(DAYS[0], DAYS[-1]),
        max_active_runs=2,
    )
    assert executed.success
    assert counting.most == 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_re_execution_needs_no_place_for_a_run_that_is_active(
    airflow_v2: Airflow, instance: dg.DagsterInstance, number: int
) -> None:
    """Also for a new run (`on_retry: new_run`) of one that failed."""
    add_dags(airflow_v2, FIVE[:1], polls=None)
    declared = {"trigger": {"wait": False, "on_retry": "new_run"}}
    job = DagsterJob(airflow_v2.client, FIVE[:1], instance, declared, max_active_runs=1)
    last = job.execute()
    if number == 2:
        airflow_v2.database.finish_run(airflow_v2.database.runs[0], "failed")
        last = job.execute(last)
    again = job.execute(last)
    assert again.success
    assert not any("waits for a slot" in line for line in again.log)
    assert len(airflow_v2.database.runs) == number


@pytest.mark.parametrize(("api", "is_full"), [("v1", True), ("v2", False)])
def test_more_active_runs_than_ten_pages_mean_full(
    start_airflow: Callable[..., Airflow], api: str, is_full: bool
) -> None:
    """Airflow 3.3 lists only those of Dagster."""
    airflow = start_airflow(api)
    airflow.database.add_dag("busy", polls=None)
    for _ in range(1001):
        airflow.database.start_run("busy")
    limit = ConcurrencyLimit(airflow.client, {}, 1, Timing())
    assert limit.reserve([("dag", "dagster__1")]) == (set() if is_full else {("dag", "dagster__1")})


def test_an_airflow_3_that_can_not_select_by_prefix_gives_the_same(
    start_airflow: Callable[..., Airflow],
) -> None:
    airflow = start_airflow("v2")
    airflow.server.all_endpoints["v2"].version = "3.0.6"
    airflow.database.add_dag("busy", polls=None)
    for _ in range(3):
        airflow.database.start_run("busy")
    limit = ConcurrencyLimit(airflow.client, {}, 1, Timing())
    assert limit.reserve([("dag", "dagster__1")]) == {("dag", "dagster__1")}


def test_a_process_counts_what_it_launched_before_airflow_lists_it(airflow: Airflow) -> None:
    airflow.database.add_dag("dag", polls=None)
    moment = [0.0]
    timing = replace(Timing(), monotonic=lambda: moment[0], launch_visible_s=5.0)
    limit = ConcurrencyLimit(airflow.client, {}, 2, timing)
    first, second, third = (("dag", f"dagster__{number}") for number in (1, 2, 3))
    assert limit.reserve([first, second, third]) == {first, second}
    assert limit.reserve([third]) == set()
    run = airflow.client.trigger_run(*first)
    limit.settle(first, run, is_detached=False)
    airflow.database.delete_run(airflow.database.runs[0])  # as if it were not listed yet
    moment[0] = 4.9
    assert limit.reserve([third]) == set()
    moment[0] = 5.1
    assert limit.reserve([third]) == {third}
    limit.release(second)
    assert limit.reserve([first, second]) == {first}


def test_threads_of_one_process_do_not_exceed_the_limit_together(airflow_v2: Airflow) -> None:
    limit = ConcurrencyLimit(airflow_v2.client, {}, 3, Timing())
    keys = [("dag", f"dagster__{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        reserved = list(threads.map(lambda key: limit.reserve([key]), keys))
    assert sum(map(len, reserved)) == 3


def test_the_dagster_runs_that_launch_runs_of_the_instance_are_counted(
    instance: dg.DagsterInstance,
) -> None:
    @dg.job
    def job() -> None: ...

    started = dg.DagsterRunStatus.STARTED
    for airflow in ("metrics", "metrics", "warehouse"):
        tags = {f"federation/waits_for.{airflow}": "true"}
        run = instance.create_run_for_job(job, status=started, tags=tags)
        assert CurrentRun(instance, run, "lake").count_active_runs() == 1
    assert CurrentRun(instance, run, "metrics").count_active_runs() == 2
