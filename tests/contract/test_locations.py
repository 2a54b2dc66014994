"""Two code locations of one deployment, each with Airflows of its own. Dagster is real: a daemon,
and code servers over gRPC with their run workers, which are refused what Dagster+ refuses. The
Airflows are fakes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.contract.clients import NO_RATE_LIMIT, SIGN_INS
from tests.contract.deployment import Deployment
from tests.contract.fakes.airflow import FakeAirflow
from tests.unit.project import Project
from tests.waiting import wait_for

# Of servers that start, and of one that can't load its project.
pytestmark = pytest.mark.filterwarnings("ignore:Error loading repository location")

DAILY = {"cron": "0 0 * * *", "start": "2026-01-01", "date": "logical_date"}
FAST = {"observe": {"interval": 1}, "http": NO_RATE_LIMIT}


class Locations:
    """The projects of two code locations, and the Airflows that they declare."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.dagster = Deployment(folder, {"FEDERATION_TRIGGERS": "on"})
        stack.callback(self.dagster.close)
        self.airflows = {
            name: stack.enter_context(FakeAirflow(api))
            for name, api in {"warehouse": "v1", "metrics": "v2"}.items()
        }
        self._number = 0

    def declare(self, **locations: Mapping[str, Any]) -> dict[str, Path]:
        """Declare the DAGs of instances, by location and instance, and return the projects."""
        self._number += 1
        projects: dict[str, Path] = {}
        for location, instances in locations.items():
            project = Project(self.folder / str(self._number) / location, location)
            projects[location] = project.path
            for name, declared in instances.items():
                airflow = self.airflows[name]
                more = {**FAST, **declared}
                project.declare(name, airflow.url, SIGN_INS[airflow.api], more)
                for dag_id in set(declared["dags"]) - airflow.database.dags.keys():
                    airflow.database.add_dag(dag_id, polls=1)
        return projects

    def succeed(self, dag_id: str, **columns: Any) -> None:
        """Let a run of a DAG of warehouse succeed."""
        database = self.airflows["warehouse"].database
        database.finish_run(database.start_run(dag_id, **columns))

    def count_runs(self, airflow: str = "metrics") -> Counter[str]:
        """Count the successful DAG runs."""
        runs = self.airflows[airflow].database.runs
        return Counter(run.dag_id for run in runs if run.state == "success")

    def wait_for_runs(self, **expected: int) -> None:
        wait_for(lambda: self.count_runs() >= Counter(expected), f"{expected} have run")
        assert self.count_runs() == Counter(expected)


@pytest.fixture
def locations(tmp_path: Path) -> Iterator[Locations]:
    with ExitStack() as stack:
        yield Locations(tmp_path, stack)


BOTH = [{"dag": f"warehouse/{dag_id}", "state": "finished"} for dag_id in ("load", "load_more")]
WAREHOUSE = {
    "warehouse": {"dags": {"load": {}, "load_more": {}, "load_days": {"partitions": DAILY}}}
}
BY_BOTH = {"by_both": {"depends_on": BOTH, "trigger": {"when": "all"}}}
BY_EACH = {
    "by_condition": {"depends_on": ["warehouse/load"]},
    "by_event": {"depends_on": BOTH[:1]},
    "by_any_day": {"depends_on": ["warehouse/load_days"]},
    "by_day": {
        "depends_on": [{"dag": "warehouse/load_days", "partitions": DAILY}],
        "partitions": DAILY,
    },
}


def test_dags_of_two_locations_depend_on_each_other_as_those_of_one_and_nothing_is_lost_in_a_move(
    locations: Locations,
) -> None:
    dagster, metrics = locations.dagster, locations.airflows["metrics"].database
    elsewhere = {"dags": {**BY_EACH, **BY_BOTH}, "elsewhere": ["warehouse"]}
    with dagster.run(locations.declare(core=WAREHOUSE, sales={"metrics": elsewhere})):
        assets = dagster.fetch_assets()
        assert assets["warehouse/dag/load"]["groupName"] == "warehouse"  # and no stub of sales'
        (upstream,) = assets["metrics/dag/by_condition"]["dependencyKeys"]
        assert upstream["path"] == ["warehouse", "dag", "load"]
        why = wait_for(lambda: dagster.fetch_check("metrics", "by_condition", "ready"), "`ready`")
        assert why == "warehouse/load has never succeeded."
        dagster.wait_for_ticks("metrics__automation", "metrics__events", "metrics__observation")
        # Of the last three, as loops of the daemon may be late on a busy machine.
        late_s = list[float]()

        def are_as_expected() -> bool:
            late_s.append(dagster.measure_conditions("metrics__observation", "sales"))
            return len(late_s) >= 3 and abs(statistics.median(late_s[-3:])) < 1

        wait_for(are_as_expected, "conditions are evaluated when expected", timeout_s=300)

        locations.succeed("load")
        locations.succeed("load_days", logical_date=datetime(2026, 1, 2, tzinfo=timezone.utc))
        metrics.finish_run(metrics.start_run("by_both", "of a person"))
        locations.wait_for_runs(**dict.fromkeys((*BY_EACH, *BY_BOTH), 1))
        for dag_id in ("by_both", "by_day"):
            (run,) = wait_for(
                lambda dag_id=dag_id: dagster.fetch_materializations("metrics", dag_id) or None,
                f"{dag_id} is reported",
            )
        assert run.partition == "2026-01-02"
        dagster.wait_for_ticks("metrics__events", "metrics__observation")  # it waits for load_more

    metrics.finish_run(metrics.start_run("by_both", "meanwhile"))
    locations.succeed("load_more")
    with dagster.run(locations.declare(core={**WAREHOUSE, "metrics": {"dags": BY_BOTH}})):
        expected = {**dict.fromkeys(BY_EACH, 1), "by_both": 3}
        locations.wait_for_runs(**expected)
        dagster.wait_for_ticks("metrics__events", "metrics__observation")
        assert locations.count_runs() == Counter(expected)
        reported = [each.run_id for each in dagster.fetch_materializations("metrics", "by_both")]
        assert len(reported) == len(set(reported)) == 3


def test_an_instance_in_two_locations_runs_each_dag_once_and_is_an_error_in_the_second(
    locations: Locations,
) -> None:
    """A third location that both depend on can't be loaded, which stops neither."""
    either = {
        "by_condition": {"depends_on": ["warehouse/load"]},
        "by_event": {"depends_on": BOTH[:1]},
        "by_broken": {"depends_on": ["warehouse/load", "other/b"]},  # which has never succeeded
    }
    metrics = {"metrics": {"dags": either, "elsewhere": ["warehouse", "other"]}}
    warehouse = {"warehouse": {"dags": {"load": {}}}}
    projects = locations.declare(
        core={"metrics": metrics["metrics"]}, sales=metrics, lake=warehouse
    )
    broken = Project(locations.folder / "broken", "broken")
    broken.declare("other", more={"elsewhere": ["warehouse"]}, b=["nowhere/a"])
    dagster = locations.dagster
    with dagster.run({**projects, "broken": broken.path}, broken=["broken"]):
        dagster.wait_for_ticks("metrics__automation", "metrics__events")
        errors = wait_for(lambda: dagster.fetch_tick_errors("metrics__events"), "a tick fails")
        assert all(
            "is declared in the code locations 'core' and 'sales'" in each for each in errors
        )
        locations.succeed("load")
        locations.wait_for_runs(by_condition=1, by_event=1)
        dagster.wait_for_ticks("metrics__automation", "metrics__events", "metrics__observation")
        assert locations.count_runs() == Counter(by_condition=1, by_event=1)
        (_,) = dagster.fetch_materializations("warehouse", "load")
