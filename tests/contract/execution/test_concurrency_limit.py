"""How many DAG runs go on at a time by our doing: `limits.max_active_runs`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import DagDeclaration
from federation_defs.execution import concurrency as admission
from federation_defs.execution.concurrency import Slots
from federation_defs.naming import build_pool_name, build_slot_key
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import (
    Attempts,
    ExecutedRun,
    materialize,
    meanwhile,
    wait_for_log,
)
from tests.contract.execution.interrupting import before_acting, cancel, interrupt
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Act, Fault, answer
from tests.waiting import wait_for

POOL = build_pool_name("metrics")
POST = asks("POST", "/dags/[^/]+/dagRuns")
ANY_RUN = "/dags/[^~/]+/dagRuns/[^/]+"
FIVE = [f"dag_{number}" for number in range(5)]


class Counting:
    """Counts the runs that go on whenever one more is triggered."""

    def __init__(self, airflow: Airflow) -> None:
        self.most = 0
        self._database = airflow.database
        airflow.server.fail_next(POST, self, times=99)

    def __call__(self, act: Act) -> Response:
        response = act()
        going_on = [run for run in self._database.runs if not run.is_finished]
        self.most = max(self.most, len(going_on))
        return response


def add_dags(airflow: Airflow, dag_ids: Sequence[str], polls: float | None = 1) -> None:
    for dag_id in dag_ids:
        airflow.database.add_dag(dag_id, polls=polls)


def read_slots(instance: dg.DagsterInstance) -> tuple[int, int]:
    """How many are taken, and how many wait for one."""
    info = instance.event_log_storage.get_concurrency_info(POOL)
    return info.active_slot_count, info.pending_step_count


def test_no_more_runs_go_on_at_a_time_than_are_allowed_and_all_have_their_turn(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow, FIVE)
    counting = Counting(airflow)
    executed = materialize(airflow.client, FIVE, instance, max_active_runs=2)
    assert sorted(executed.materialized) == FIVE
    assert counting.most == 2
    assert any("waits for its turn" in line for line in executed.log)
    assert read_slots(instance) == (0, 0)


def test_runs_are_limited_over_all_dagster_runs(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    halves = [FIVE[:3], FIVE[3:]]
    add_dags(airflow_v2, FIVE)
    counting = Counting(airflow_v2)
    run = partial(materialize, airflow_v2.client, instance=instance, max_active_runs=2)
    with ThreadPoolExecutor(2) as threads:
        executed = list(threads.map(run, halves, timeout=60))
    assert [sorted(executed.materialized) for executed in executed] == halves
    assert counting.most == 2
    assert read_slots(instance) == (0, 0)


def test_a_limit_that_is_set_in_dagster_holds_where_none_is_declared(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    instance.event_log_storage.set_concurrency_slots(POOL, 1)
    add_dags(airflow_v2, FIVE[:2])
    counting = Counting(airflow_v2)
    executed = materialize(airflow_v2.client, FIVE[:2], instance)
    assert sorted(executed.materialized) == FIVE[:2]
    assert counting.most == 1


def test_no_limit_is_none(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    add_dags(airflow_v2, FIVE)
    counting = Counting(airflow_v2)
    materialize(airflow_v2.client, FIVE, instance)
    assert counting.most == 5


def test_the_time_out_of_a_run_begins_with_its_turn(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Each takes a second and more; the other waits for longer than it is given."""
    add_dags(airflow_v2, FIVE[:2])
    declared = {dag_id: {"trigger": {"timeout": "1.5s"}} for dag_id in FIVE[:2]}
    executed = materialize(airflow_v2.client, declared, instance, max_active_runs=1)
    assert sorted(executed.materialized) == FIVE[:2]


def hold_the_slot(instance: dg.DagsterInstance) -> str:
    """Another Dagster run, which lives, has the only one; its id."""

    @dg.job
    def other() -> None: ...

    run = instance.create_run_for_job(other, status=dg.DagsterRunStatus.STARTING)
    storage = instance.event_log_storage
    storage.set_concurrency_slots(POOL, 1)
    assert storage.claim_concurrency_slot(POOL, run.run_id, "other", 0).is_claimed
    return run.run_id


def test_the_dagster_run_of_the_higher_priority_has_its_turn_first(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    holder = hold_the_slot(instance)
    add_dags(airflow_v2, FIVE)

    def run(dag_ids: list[str], priority: str) -> ExecutedRun:
        tags = {"dagster/priority": priority}
        return materialize(airflow_v2.client, dag_ids, instance, tags=tags, max_active_runs=1)

    def count_waiting(number: int) -> Callable[[], bool]:
        return lambda: read_slots(instance)[1] == number

    with ThreadPoolExecutor(2) as threads:
        low = threads.submit(run, FIVE[:1], "-1")
        wait_for(count_waiting(1), "one waits for its turn", interval_s=0.02)
        high = threads.submit(run, FIVE[1:2], "5")
        wait_for(count_waiting(2), "both wait for their turn", interval_s=0.02)
        instance.event_log_storage.free_concurrency_slot_for_step(holder, "other")
        assert low.result(60).success
        assert high.result(60).success
    assert [run.dag_id for run in airflow_v2.database.runs] == [FIVE[1], FIVE[0]]


def test_a_priority_that_is_no_number_is_the_usual_one(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE[:1], polls=0)
    tags = {"dagster/priority": "urgent"}
    assert materialize(airflow_v2.client, FIVE[:1], instance, tags=tags, max_active_runs=1).success


def test_the_slots_of_a_dead_attempt_are_free_for_the_next(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Its worker was killed: nobody gave them back."""
    add_dags(airflow_v2, FIVE[:1], polls=0)
    airflow_v2.database.dags[FIVE[0]].outcome = "failed"
    attempts = Attempts(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    first = attempts.execute()
    storage = instance.event_log_storage
    key = build_slot_key("metrics", FIVE[0])
    assert storage.claim_concurrency_slot(POOL, first.run_id, key, 0).is_claimed
    airflow_v2.database.dags[FIVE[0]].outcome = "success"
    second = attempts.execute(first)
    assert second.materialized == FIVE[:1]
    assert read_slots(instance) == (0, 0)


def test_the_slots_are_free_after_a_failure(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE, polls=0)
    airflow_v2.database.dags[FIVE[0]].outcome = "failed"
    airflow_v2.database.dags[FIVE[1]].is_paused = True
    executed = materialize(airflow_v2.client, FIVE, instance, max_active_runs=1)
    assert sorted(executed.materialized) == FIVE[2:]
    assert read_slots(instance) == (0, 0)


@pytest.mark.parametrize("is_canceled", [True, False], ids=["canceled", "interrupted"])
def test_the_slots_and_the_places_in_the_queue_are_free_when_the_run_is_interrupted(
    airflow_v2: Airflow, instance: dg.DagsterInstance, is_canceled: bool
) -> None:
    add_dags(airflow_v2, FIVE, polls=math.inf)
    happens = partial(cancel, instance) if is_canceled else interrupt
    airflow_v2.server.fail_next(asks("GET", ANY_RUN), before_acting(happens))
    executed = materialize(airflow_v2.client, FIVE, instance, max_active_runs=1)
    assert not executed.success
    assert len(airflow_v2.database.runs) == 1
    assert read_slots(instance) == (0, 0)


def test_a_run_that_is_canceled_before_its_turn_triggers_nothing(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    hold_the_slot(instance)
    add_dags(airflow_v2, FIVE[:1])

    def give_up() -> None:
        wait_for_log(instance, "waits for its turn")
        cancel(instance)

    with meanwhile(give_up):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert airflow_v2.database.runs == []
    assert read_slots(instance) == (1, 0)


def declare_unwaited(dag_ids: Sequence[str]) -> dict[str, Any]:
    return {dag_id: {"trigger": {"wait": False}} for dag_id in dag_ids}


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a slot looks often after those that others have."""
    monkeypatch.setattr(admission, "OTHERS_S", 0.1)


@pytest.mark.usefixtures("impatience")
def test_runs_that_are_not_waited_for_count_until_they_end(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow, FIVE)
    counting = Counting(airflow)
    executed = materialize(airflow.client, declare_unwaited(FIVE), instance, max_active_runs=2)
    assert executed.success
    assert counting.most == 2
    assert len(airflow.database.runs) == 5


def leave_one(airflow: Airflow, instance: dg.DagsterInstance) -> RunRow:
    """A run that is not waited for, with the only slot; its Dagster run is over."""
    add_dags(airflow, FIVE[:2], polls=None)
    airflow.database.dags[FIVE[1]].polls = 0
    unwaited = declare_unwaited(FIVE[:1])
    executed = materialize(airflow.client, unwaited, instance, max_active_runs=1)
    assert executed.success
    assert read_slots(instance) == (1, 0)
    return airflow.database.runs[0]


def follow_one(
    airflow: Airflow, instance: dg.DagsterInstance, *, timeout: str = "30s"
) -> tuple[ExecutedRun, list[str]]:
    """What becomes of a run that needs the slot of the one that was left; and who has it then."""
    declared = {**declare_unwaited(FIVE[:1]), FIVE[1]: {}}
    declared[FIVE[0]]["trigger"]["timeout"] = timeout
    executed = materialize(
        airflow.client, declared, instance, selection=FIVE[1:2], max_active_runs=1
    )
    info = instance.event_log_storage.get_concurrency_info(POOL)
    return executed, [slot.run_id for slot in info.claimed_slots]


def end(airflow: Airflow, run: RunRow) -> None:
    airflow.database.finish_run(run, "failed")


def delete(airflow: Airflow, run: RunRow) -> None:
    airflow.database.runs.remove(run)


def pause(airflow: Airflow, run: RunRow) -> None:
    airflow.database.dags[run.dag_id].is_paused = True


def pause_in_mid_run(airflow: Airflow, run: RunRow) -> None:
    run.state = "running"
    pause(airflow, run)


def remove_dag(airflow: Airflow, run: RunRow) -> None:
    airflow.database.dags[run.dag_id].is_present = False


def end_where_dags_may_not_be_read(airflow: Airflow, run: RunRow) -> None:
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow.server.fail_next(asks("GET", "/dags"), forbidden, times=99)
    end(airflow, run)


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize(
    "happens",
    [end, delete, pause, pause_in_mid_run, remove_dag, end_where_dags_may_not_be_read],
)
def test_the_slot_of_a_run_that_is_not_waited_for_is_free_when_that_does_not_go_on(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    happens: Callable[[Airflow, RunRow], None],
) -> None:
    run = leave_one(airflow_v2, instance)

    def act() -> None:
        wait_for_log(instance, "waits for its turn")
        asked = airflow_v2.server.count("GET", ANY_RUN)
        wait_for(lambda: airflow_v2.server.count("GET", ANY_RUN) > asked + 1, "it is looked after")
        assert len(airflow_v2.database.runs) == 1
        happens(airflow_v2, run)

    with meanwhile(act):
        executed, holders = follow_one(airflow_v2, instance)
    assert executed.materialized == FIVE[1:2]
    assert holders == []


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize(
    "fault", [answer(503), answer(403, {"detail": "Forbidden"})], ids=["away", "forbidden"]
)
def test_the_slot_of_a_run_that_is_not_waited_for_is_kept_while_its_instance_does_not_tell(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Fault
) -> None:
    """How that run is doing; it tells whatever else it is asked."""
    run = leave_one(airflow_v2, instance)
    airflow_v2.server.fail_next(asks("GET", ANY_RUN), fault, times=999)

    def act() -> None:
        wait_for_log(instance, "Waiting on.")
        assert read_slots(instance) == (1, 1)
        asked = airflow_v2.server.count("GET", ANY_RUN)
        wait_for(lambda: airflow_v2.server.count("GET", ANY_RUN) > asked + 9, "it is looked after")
        assert read_slots(instance) == (1, 1)
        airflow_v2.server.forget_faults()
        airflow_v2.database.finish_run(run)

    with meanwhile(act):
        executed, _ = follow_one(airflow_v2, instance)
    assert executed.materialized == FIVE[1:2]


@pytest.mark.usefixtures("impatience")
def test_a_run_that_is_not_waited_for_has_its_slot_no_longer_than_its_time_out(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    leave_one(airflow_v2, instance)
    executed, _ = follow_one(airflow_v2, instance, timeout="2s")
    assert executed.materialized == FIVE[1:2]
    assert airflow_v2.database.runs[0].state == "queued"


@pytest.mark.parametrize("number", [1, 2])
def test_executing_again_what_is_not_waited_for_takes_its_slot_over(
    airflow_v2: Airflow, instance: dg.DagsterInstance, number: int
) -> None:
    """Also that of a new run (`on_retry: new_run`) for one that failed."""
    add_dags(airflow_v2, FIVE[:1], polls=None)
    declared = {"trigger": {"wait": False, "on_retry": "new_run"}}
    attempts = Attempts(airflow_v2.client, FIVE[:1], instance, declared, max_active_runs=1)
    last = attempts.execute()
    if number == 2:
        airflow_v2.database.finish_run(airflow_v2.database.runs[0], "failed")
        last = attempts.execute(last)
    again = attempts.execute(last)
    assert again.success
    assert not any("waits for its turn" in line for line in again.log)
    assert len(airflow_v2.database.runs) == number
    info = instance.event_log_storage.get_concurrency_info(POOL)
    assert [slot.run_id for slot in info.claimed_slots] == [airflow_v2.database.runs[-1].run_id]


def test_a_limit_that_is_deleted_while_a_run_has_its_slot_spoils_no_pool(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    leave_one(airflow_v2, instance)
    storage = instance.event_log_storage
    storage.delete_concurrency_limit(POOL)
    executed, _ = follow_one(airflow_v2, instance)
    assert executed.materialized == FIVE[1:2]
    storage.set_concurrency_slots("another pool", 3)
    assert storage.get_concurrency_info("another pool").slot_count == 3


@pytest.mark.usefixtures("impatience")
def test_a_limit_that_is_deleted_while_a_run_waits_for_its_turn_is_none(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    hold_the_slot(instance)
    add_dags(airflow_v2, FIVE[:1], polls=0)

    def lift() -> None:
        wait_for_log(instance, "waits for its turn")
        instance.event_log_storage.delete_concurrency_limit(POOL)

    with meanwhile(lift):
        executed = materialize(airflow_v2.client, FIVE[:1], instance)
    assert executed.materialized == FIVE[:1]


@pytest.mark.usefixtures("impatience")
def test_a_declared_limit_that_is_deleted_while_runs_wait_for_their_turn_is_set_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """There is another pool, as Dagster spoils the only one that has a slot and is deleted."""
    add_dags(airflow_v2, FIVE[:3])
    storage = instance.event_log_storage
    storage.set_concurrency_slots("another pool", 1)
    counting = Counting(airflow_v2)

    def delete_limit() -> None:
        wait_for_log(instance, "waits for its turn")
        storage.delete_concurrency_limit(POOL)

    with meanwhile(delete_limit):
        executed = materialize(airflow_v2.client, FIVE[:3], instance, max_active_runs=1)
    assert sorted(executed.materialized) == FIVE[:3]
    assert counting.most <= 2  # the slot that was deleted, and the one in its place
    assert storage.get_concurrency_info(POOL).limit == 1


@pytest.mark.usefixtures("impatience")
def test_a_limit_of_none_at_all_lets_none_begin(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, looks = instance.event_log_storage, Counter[str]()
    look_after = Slots.look_after

    def count(slots: Slots, client: AirflowClient, dags: Mapping[str, DagDeclaration]) -> None:
        look_after(slots, client, dags)
        looks["over"] += 1

    monkeypatch.setattr(Slots, "look_after", count)
    storage.set_concurrency_slots(POOL, 0)
    add_dags(airflow_v2, FIVE[:1], polls=0)

    def let_begin() -> None:
        wait_for_log(instance, "waits for its turn")
        wait_for(lambda: looks["over"] > 2, "it was looked who has a slot, more than once")
        assert airflow_v2.database.runs == []
        storage.set_concurrency_slots(POOL, 1)

    with meanwhile(let_begin):
        executed = materialize(airflow_v2.client, FIVE[:1], instance)
    assert executed.materialized == FIVE[:1]


@pytest.mark.usefixtures("impatience")
def test_the_slot_of_a_run_that_dies_is_free_for_one_that_waits_for_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    holder = instance.get_run_by_id(hold_the_slot(instance))
    assert holder is not None
    add_dags(airflow_v2, FIVE[:1], polls=0)

    def die() -> None:
        wait_for_log(instance, "waits for its turn")
        instance.report_run_failed(holder)

    with meanwhile(die):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


@pytest.mark.usefixtures("impatience")
def test_a_slot_that_is_given_back_as_one_comes_into_the_queue_is_had(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster assigns it to who is in the queue by then: to nobody."""
    holder = hold_the_slot(instance)
    add_dags(airflow_v2, FIVE[:1], polls=0)
    storage = instance.event_log_storage

    def give_back() -> None:
        wait_for_log(instance, "waits for its turn")
        with monkeypatch.context() as patch:
            patch.setattr(storage, "assign_pending_steps", lambda _: None)
            storage.free_concurrency_slot_for_step(holder, "other")

    with meanwhile(give_back):
        executed = materialize(airflow_v2.client, FIVE[:1], instance, max_active_runs=1)
    assert executed.materialized == FIVE[:1]


def test_the_default_limit_of_dagsters_pools_holds_where_none_is_declared(
    airflow_v2: Airflow, tmp_path: Path
) -> None:
    add_dags(airflow_v2, FIVE[:3])
    counting = Counting(airflow_v2)
    settings = {"concurrency": {"pools": {"default_limit": 2}}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=settings) as instance:
        executed = materialize(airflow_v2.client, FIVE[:3], instance)
    assert sorted(executed.materialized) == FIVE[:3]
    assert counting.most == 2


def test_a_run_that_is_not_waited_for_keeps_its_slot_from_those_that_come_meanwhile(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It is given to the DAG run, whoever else is in the queue and however urgent that is."""
    add_dags(airflow_v2, FIVE[:2], polls=math.inf)
    client = airflow_v2.client
    urgent: list[Future[ExecutedRun]] = []
    with ThreadPoolExecutor(1) as threads:

        def come() -> None:
            dags, tags = FIVE[1:2], {"dagster/priority": "9"}
            task = partial(materialize, client, dags, instance, tags=tags, max_active_runs=1)
            urgent.append(threads.submit(task))
            wait_for_log(instance, "waits for its turn")

        airflow_v2.server.fail_next(POST, before_acting(come))
        unwaited = declare_unwaited(FIVE[:1])
        assert materialize(client, unwaited, instance, max_active_runs=1).success
        assert read_slots(instance) == (1, 1)
        (run,) = airflow_v2.database.runs
        airflow_v2.database.dags[FIVE[1]].polls = 0
        airflow_v2.database.finish_run(run)
        assert urgent[0].result(30).materialized == FIVE[1:2]


def test_without_a_limit_runs_that_are_not_waited_for_hold_nothing(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_dags(airflow_v2, FIVE, polls=math.inf)
    assert materialize(airflow_v2.client, declare_unwaited(FIVE), instance).success
    assert len(airflow_v2.database.runs) == 5
    assert read_slots(instance) == (0, 0)
