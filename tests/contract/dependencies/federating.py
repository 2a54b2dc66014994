"""Several fake Airflows whose DAGs depend on each other, and Dagster's daemon, played by a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.checks import build_checks
from federation_defs.execution import build_execution
from federation_defs.specs import build_specs
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.dependencies.reacting import declare
from tests.contract.execution.automating import TAGS
from tests.contract.execution.executing import FAST
from tests.contract.fakes.database import RunRow
from tests.contract.observation.daemon import Daemon
from tests.waiting import wait_for

_ACTIVE = ("queued", "running")


class Federation:
    """Airflows, and the Dagster runs that their automation sensors request.

    DAG runs go on until the test ends them. DAGs are named as instance/dag_id.

    Args:
        dags: Of each instance, what is declared of its DAGs, by id.
        own: Dagster assets of the project's own. A sensor of theirs requests them.
    """

    def __init__(
        self,
        start_airflow: StartAirflow,
        instance: dg.DagsterInstance,
        threads: ThreadPoolExecutor,
        dags: Mapping[str, Mapping[str, Any]],
        own: Sequence[dg.AssetsDefinition] = (),
    ) -> None:
        self.instance = instance
        self._threads = threads
        self._airflows: dict[str, Airflow] = {}
        self._daemons: dict[str, Daemon] = {}
        self._executed: dict[str, Sequence[dg.AssetsDefinition]] = {"own": own} if own else {}
        self._running: dict[str, Future[dg.ExecuteInProcessResult]] = {}
        for name, dag_ids in dags.items():
            airflow = self._airflows[name] = start_airflow("v2", name)
            for dag_id in dag_ids:
                airflow.database.add_dag(dag_id, polls=math.inf)
            self._daemons[name] = Daemon(airflow.client, dag_ids, instance)
        declarations = {
            name: declare(dags[name], airflow.client) for name, airflow in self._airflows.items()
        }
        observed: list[dg.AssetSpec] = []
        checks: list[dg.AssetChecksDefinition] = []
        for name, declaration in declarations.items():
            client = self._airflows[name].client
            specs = build_specs(declaration, None, set(), declarations)
            run = {dag_id: specs.pop(dag_id) for dag_id in declaration.downstreams}
            if run:
                assets = build_execution(client, declaration.downstreams, run, timing=FAST)
                self._executed[name] = [assets]
            if specs:
                checks.append(
                    build_checks(client, {each: declaration.find_dag(each) for each in specs})
                )
            observed += specs.values()
        executed = [each for assets in self._executed.values() for each in assets]
        self.defs = dg.Definitions([*observed, *executed], asset_checks=checks)
        self._cursors: dict[str, Any] = dict.fromkeys(self._executed)
        self.tick()  # what was before is no update

    def tick(self, *names: str) -> list[str]:
        """Evaluate the automation sensors of these instances, or of all, one after the other.
        Return what they request, and start a run of it."""
        return [each for name in names or self._executed for each in self._request(name)]

    def _request(self, name: str) -> list[str]:
        keys = sorted(key for assets in self._executed[name] for key in assets.keys)
        result = dg.evaluate_automation_conditions(
            self.defs,
            self.instance,
            asset_selection=dg.AssetSelection.assets(*keys),
            cursor=self._cursors[name],
        )
        self._cursors[name] = result.cursor
        if requested := [key for key in keys if result.get_num_requested(key)]:
            self.start(name, requested)
        return [f"{name}/{key.path[-1]}" for key in requested]

    def start(self, name: str, keys: Sequence[dg.AssetKey]) -> None:
        """Start a Dagster run, and wait until it has started a DAG run."""
        self._running[name] = self._threads.submit(
            dg.materialize,
            self._executed[name],
            selection=dg.AssetSelection.assets(*keys),
            instance=self.instance,
            tags=TAGS,
            raise_on_error=False,
        )
        if name == "own":
            self._running.pop(name).result(60)
        else:
            wait_for(
                lambda: bool(self._find_active(name)), f"a run in {name} is active", interval_s=0.02
            )

    def end(self, dag: str, state: str = "success") -> None:
        """End a DAG run: the active one, or one that Airflow has started. It is reported."""
        name, dag_id = dag.split("/")
        database = self._airflows[name].database
        active = [run for run in self._find_active(name) if run.dag_id == dag_id]
        (run,) = active or [database.start_run(dag_id)]
        database.finish_run(run, state)
        if name in self._running:
            self._running.pop(name).result(60)
        else:
            self._daemons[name].tick()

    def close(self) -> None:
        """End all DAG runs that are left, and so the Dagster runs that wait for them."""
        for name, airflow in self._airflows.items():
            for run in self._find_active(name):
                airflow.database.finish_run(run)

    def count_runs(self, dag: str) -> int:
        name, dag_id = dag.split("/")
        return sum(run.dag_id == dag_id for run in self._airflows[name].database.runs)

    def _find_active(self, name: str) -> list[RunRow]:
        return [run for run in self._airflows[name].database.runs if run.state in _ACTIVE]


Federate: TypeAlias = Callable[..., Federation]


@contextmanager
def federating(start_airflow: StartAirflow, instance: dg.DagsterInstance) -> Iterator[Federate]:
    """Give a function that starts a federation."""
    with ThreadPoolExecutor() as threads, ExitStack() as running:

        def federate(*arguments: Any) -> Federation:
            federation = Federation(start_airflow, instance, threads, *arguments)
            running.callback(federation.close)
            return federation

        yield federate
