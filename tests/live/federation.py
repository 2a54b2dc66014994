"""Two real Airflows and a real `dagster dev` that reaches them through proxies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from tests.conftest import Airflows
from tests.contract.worlds import trigger_surely
from tests.live.dagster_api import Materialization, count_evaluations
from tests.live.dagster_dev import DagsterDev, editing_declaration
from tests.live.lossy_proxy import LossyProxy
from tests.live.periods import declare_periods
from tests.live.steered import declare_steered_dags
from tests.waiting import wait_for

# The DAGs that both Airflows have, besides the demo's (`tests/contract/dags`).
BURST = "burst"  # only observed; its runs end as soon as the scheduler sees them
PACED = "paced"  # takes as long as a Variable says, one run at a time
STORM = [f"storm_{number:02}" for number in range(20)]  # like burst, but Dagster can trigger them
NEVER = "never"  # never runs, for the others to depend on
UNWATCHED = "unwatched"  # like burst, but not selected

DEMO_DAGS = {"warehouse": "load_*", "metrics": "*_metrics"}
NAMES = list(DEMO_DAGS)


@dataclass(frozen=True)
class Dependency:
    """A dependency of the demo: a DAG in warehouse, and the one in metrics that follows it."""

    upstream: str
    downstream: str


@dataclass(frozen=True)
class Federation:
    """A running federation.

    Attributes:
        clients: Reach the Airflows directly, as their other users do.
        proxies: By which Dagster reaches the Airflows.
        event_log: Dagster's, opened directly.
        lake: The DuckDB file of the demo's DAGs.
    """

    dagster: DagsterDev
    clients: Mapping[str, AirflowClient]
    proxies: Mapping[str, LossyProxy]
    event_log: dg.DagsterInstance
    lake: Path

    def run_upstream(self, *dependencies: Dependency) -> list[DagRun]:
        """Trigger the upstream DAGs in warehouse, and return their runs when all succeeded."""
        run_ids = [trigger(self.clients["warehouse"], each.upstream) for each in dependencies]
        return [
            wait_for_state(self.clients["warehouse"], each.upstream, run_id, "success")
            for each, run_id in zip(dependencies, run_ids, strict=True)
        ]

    def fetch_downstream_runs(self, dependency: Dependency, since: datetime) -> list[DagRun]:
        """Return all runs of the downstream DAG that changed since, the oldest first."""
        return fetch_runs(self.clients["metrics"], since, {dependency.downstream})

    def wait_for_downstream(
        self, dependency: Dependency, since: datetime, state: str, count: int = 1
    ) -> DagRun:
        """Return the newest of this many downstream runs when it is in this state."""

        def find() -> DagRun | None:
            runs = self.fetch_downstream_runs(dependency, since)
            return runs[-1] if len(runs) >= count and runs[-1].state == state else None

        what = f"run {count} of {dependency.downstream} is {state}"
        return wait_for(find, what, timeout_s=300)

    def fetch_materializations(
        self, name: str, dag_id: str, since: datetime
    ) -> list[Materialization]:
        """Return the materializations of a DAG's asset since then, the newest first."""
        found = self.dagster.fetch_materializations(name, dag_id)
        return [event for event in found if event.timestamp >= since.timestamp()]

    def wait_for_materialization(
        self, name: str, dag_id: str, run: DagRun, since: datetime
    ) -> Materialization:
        """Return the materialization for a DAG run."""

        def find() -> Materialization | None:
            found = self.fetch_materializations(name, dag_id, since)
            return next((event for event in found if event.run_id == run.run_id), None)

        return wait_for(find, f"{run.run_id} of {dag_id} is materialized", timeout_s=300)

    def describe_progress(self, name: str, dagster_run_id: str, dag_id: str, run_id: str) -> str:
        """Return how far a run has come in Dagster and in Airflow."""
        run = self.clients[name].fetch_run(dag_id, run_id)
        status = self.dagster.fetch_status(dagster_run_id)
        return f"{status.lower()}, {run.state if run else 'no'} DAG run"

    def wait_for_ticks(self, count: int = 2, since: datetime | None = None) -> None:
        """Return when every sensor was evaluated this many times since then, or from now on.

        What the sensors would report or request too often, they have by then.
        """
        begin = (since or utc_now()).timestamp()

        # Dagster may have loaded one code location of several so far.
        expected = {f"{name}__observation" for name in NAMES}

        def have_ticked() -> bool:
            states = self.event_log.all_instigator_state(instigator_type=InstigatorType.SENSOR)
            ticks = [
                self.event_log.get_ticks(state.instigator_origin_id, state.selector_id, limit=10)
                for state in states
            ]
            evaluations = [count_evaluations(found, begin) for found in ticks]
            known = {state.name for state in states}
            return expected <= known and min(evaluations) >= count

        wait_for(have_ticked, f"every sensor was evaluated {count} times", timeout_s=300)

    def settle(self, name: str, *dag_ids: str) -> None:
        """Return when runs of these DAGs are neither in progress nor requested by any sensor."""
        self.wait_until_idle(name, *dag_ids)
        self.wait_for_ticks()
        self.wait_until_idle(name, *dag_ids)

    def wait_until_idle(self, name: str, *dag_ids: str) -> None:
        wait_for(
            lambda: not self.dagster.is_in_progress(name, *dag_ids),
            f"no run of {dag_ids} is in progress",
            timeout_s=300,
        )

    def assert_reported_once(
        self, name: str, since: datetime, expected: Collection[tuple[str, str]]
    ) -> None:
        """Check that Airflow and Dagster agree on the runs of some DAGs.

        Airflow has exactly the expected runs, as (DAG id, run id), and all of them have ended. Each
        success is one materialization, nothing else is one, and nothing is in progress.
        """
        dag_ids = {dag_id for dag_id, _ in expected}
        runs = fetch_runs(self.clients[name], since, dag_ids)
        assert Counter((run.dag_id, run.run_id) for run in runs) == Counter(expected)
        assert [run for run in runs if not run.is_finished] == []
        successes = Counter((run.dag_id, run.run_id) for run in runs if run.is_success)

        def count_reports(*dag_ids: str) -> Counter[tuple[str, str]]:
            return Counter(
                (dag_id, event.run_id)
                for dag_id in dag_ids
                for event in self.fetch_materializations(name, dag_id, since)
            )

        for dag_id in dag_ids:  # one by one, as to read all of them again and again is slow
            of_dag = Counter({key: count for key, count in successes.items() if key[0] == dag_id})
            wait_for(
                lambda dag_id=dag_id, of_dag=of_dag: of_dag <= count_reports(dag_id),
                f"{dict(of_dag)} are reported",
            )
        self.wait_until_idle(name, *dag_ids)
        reports = count_reports(*dag_ids)
        assert reports == successes, f"{reports} are reported, {successes} have succeeded"


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def trigger(client: AirflowClient, dag_id: str, **conf: object) -> str:
    """Trigger a DAG, as any other client of the Airflow does, and return the run id."""
    run_id = f"test__{uuid4()}"
    trigger_surely(client, dag_id, run_id, conf=conf)
    return run_id


def wait_for_state(
    client: AirflowClient, dag_id: str, run_id: str, *states: str, timeout_s: float = 120
) -> DagRun:
    """Return a DAG run when it is in one of these states."""

    def find() -> DagRun | None:
        run = client.fetch_run(dag_id, run_id)
        return run if run is not None and run.state in states else None

    what = f"{dag_id} {run_id} is {' or '.join(states)}"
    return wait_for(find, what, timeout_s)


def fetch_runs(client: AirflowClient, since: datetime, dag_ids: Collection[str]) -> list[DagRun]:
    """Return all runs of these DAGs that changed since."""
    return [run for run in client.fetch_changed_runs(since).entries if run.dag_id in dag_ids]


def set_variable(client: AirflowClient, key: str, value: str | None) -> None:
    """Set an Airflow Variable, or delete it."""
    path = f"/api/{client.api_version.api}/variables"
    client.session.request("DELETE", f"{path}/{key}")
    if value is not None:
        response = client.session.request("POST", path, json={"key": key, "value": value})
        assert response.ok, response.text


def set_duration(client: AirflowClient, seconds: float, dag_id: str = PACED) -> None:
    """Set how long the runs of a DAG take that start from now on."""
    set_variable(client, f"{dag_id}__seconds", str(seconds))


@contextmanager
def start_federation(
    airflows: Airflows, folder: Path, dagster_type: type[DagsterDev] = DagsterDev
) -> Iterator[Federation]:
    """Run Dagster over the demo's DAGs and those of the tests."""
    with ExitStack() as stack:
        clients = {name: airflows.connect(name) for name in NAMES}
        proxies = {name: LossyProxy(client.url) for name, client in clients.items()}
        for proxy in proxies.values():
            stack.enter_context(proxy)
        # `dagster dev` prefers the project's .env, which makes the addresses from the ports.
        ports = {f"{name.upper()}_PORT": str(proxy.port) for name, proxy in proxies.items()}
        urls = {f"{name.upper()}_AIRFLOW_URL": proxy.url for name, proxy in proxies.items()}
        dagster = dagster_type(folder, {**airflows.env, **ports, **urls})
        for name in NAMES:
            declare_test_dags(dagster.project, name)
        declare_steered_dags(dagster.project)
        declare_periods(dagster.project, has_teams=dagster.has_teams)
        stack.callback(dagster.close)
        dagster.start()
        for proxy in proxies.values():
            wait_for(lambda proxy=proxy: proxy.total, "Dagster uses the proxy")
        event_log = stack.enter_context(dagster.open_instance())
        yield Federation(dagster, clients, proxies, event_log, airflows.lake)


def declare_test_dags(project: Path, name: str) -> None:
    """Select the DAGs of the tests too, and let Dagster trigger some of them on request."""
    (other,) = set(NAMES) - {name}
    triggered = {dag_id: {"depends_on": [f"{other}/{NEVER}"]} for dag_id in (PACED, *STORM)}
    with editing_declaration(project, name) as declared:
        declared["select"] = {"dag_ids": [DEMO_DAGS[name], BURST, PACED, "storm_*", NEVER]}
        declared["dags"] |= triggered


def replace_dags(project: Path, name: str, selected: list[str], dags: dict[str, Any]) -> None:
    """Replace what is selected of an instance, and what is declared about DAGs."""
    with editing_declaration(project, name) as declared:
        declared |= {"select": {"dag_ids": selected}, "dags": dags}
