"""Both Airflows, a Dagster that runs their DAGs, and how to tell whether all of them agree."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_run_id
from tests.conftest import Airflows
from tests.contract.fakes.fault_proxy import Fault, FaultProxy
from tests.contract.worlds import SIGN_INS, connect
from tests.live.chaos_dagster import MortalDagster
from tests.live.dagster_dev import Materialization
from tests.waiting import wait_for

# `make soak` has more of both.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "2"))
BURST = int(os.environ.get("CHAOS_BURST", "3"))

APIS = {"warehouse": "v1", "metrics": "v2"}
PACED = "paced"
STORM = [f"storm_{number:02}" for number in range(20)]
_POST = r"POST \S*/dagRuns "


def make_random() -> random.Random:
    """Chance that can be repeated: by the seed that is printed, in CHAOS_SEED."""
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
    say(f"CHAOS_SEED={seed}")
    return random.Random(seed)  # noqa: S311 - no secrets are made of it


def say(figures: str) -> None:
    print(f"\n{figures}", end="", flush=True)  # noqa: T201 - figures of `make soak`


def now() -> datetime:
    return datetime.now(timezone.utc)


class LossyProxy(FaultProxy):
    """A fault proxy on whose way to the server triggers get lost too, or are late.

    Attributes:
        is_delaying: A trigger is on its way, late.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.is_delaying = False
        self._ways: list[float | None] = []

    def lose_trigger(self) -> None:
        """The connection breaks with the next trigger on its way: Airflow never learns of it."""
        self._ways.append(None)

    def delay_trigger(self, seconds: float) -> None:
        """The next trigger, and all else meanwhile, arrives later; even if its client hangs up."""
        self._ways.append(seconds)

    def lose_answer(self, fault: Fault) -> None:
        """The answer to the next trigger that passes gets lost, or late."""
        self.fail_next(fault, _POST)

    def _choose_fault(self, request: bytes) -> Fault | None:
        if self._ways and re.match(_POST.encode(), request):
            way = self._ways.pop(0)
            if way is None:
                raise ConnectionAbortedError
            self.is_delaying = True
            time.sleep(way)
            self.is_delaying = False
        return super()._choose_fault(request)


def connect_as_demo(airflows: Airflows, name: str, url: str | None = None) -> AirflowClient:
    """A client of one of the demo's Airflows, or of what has its account and another address."""
    prefix = f"{name.upper()}_AIRFLOW_"
    url = url or airflows.env[f"{prefix}URL"]
    username, password = (airflows.env[prefix + what] for what in ("USERNAME", "PASSWORD"))
    return connect(url, SIGN_INS[APIS[name]], password, name, username)


def set_pace(client: AirflowClient, seconds: float) -> None:
    """How long the runs of `paced` that start from now on will take."""
    path = f"/api/{client.api_version.api}/variables"
    client.session.request("DELETE", f"{path}/{PACED}__seconds")
    value = {"key": f"{PACED}__seconds", "value": str(seconds)}
    answer = client.session.request("POST", path, json=value)
    assert answer.ok, answer.text


def wait_for_state(
    client: AirflowClient, dag_id: str, run_id: str, *states: str, timeout_s: float = 60
) -> DagRun:
    """A DAG run, when it is in one of these states."""

    def find() -> DagRun | None:
        run = client.fetch_run(dag_id, run_id)
        return run if run is not None and run.state in states else None

    what = f"{dag_id} {run_id} is {' or '.join(states)}"
    return wait_for(find, what, timeout_s, interval_s=0.1)


def fetch_runs(client: AirflowClient, since: datetime, dag_ids: Collection[str]) -> list[DagRun]:
    """All runs of these DAGs that have changed since."""
    return [run for run in client.fetch_changed_runs(since).runs if run.dag_id in dag_ids]


@dataclass
class Chaos:
    """The federation under test; Dagster reaches the Airflows through proxies, the test directly.

    Attributes:
        random: For all that is left to chance.
    """

    dagster: MortalDagster
    clients: Mapping[str, AirflowClient]
    proxies: Mapping[str, LossyProxy]
    random: random.Random

    def tell_where(self, name: str, root: str) -> str:
        """How far a run of `paced` has come, in Dagster and in Airflow."""
        run = self.clients[name].fetch_run(PACED, build_run_id(root))
        status = self.dagster.fetch_status(root)
        return f"{status.lower()}, {run.state if run else 'no'} DAG run"

    def fetch_new(self, name: str, dag_id: str, since: datetime) -> list[Materialization]:
        found = self.dagster.fetch_materializations(name, dag_id)
        return [event for event in found if event.timestamp >= since.timestamp()]

    def assert_truthful(
        self, name: str, since: datetime, expected: Collection[tuple[str, str]]
    ) -> None:
        """Since then there were these runs (DAG id and run id) of these DAGs in Airflow, and no
        others; each success becomes one materialization, nothing else is one, nothing goes on."""
        dag_ids = {dag_id for dag_id, _ in expected}
        runs = fetch_runs(self.clients[name], since, dag_ids)
        assert Counter((run.dag_id, run.run_id) for run in runs) == Counter(expected)
        assert [run for run in runs if not run.is_finished] == []
        successes = Counter((run.dag_id, run.run_id) for run in runs if run.is_success)

        def count_reports() -> Counter[tuple[str, str]]:
            events = {dag_id: self.fetch_new(name, dag_id, since) for dag_id in dag_ids}
            return Counter((dag_id, one.run_id) for dag_id, new in events.items() for one in new)

        wait_for(lambda: successes <= count_reports(), f"{dict(successes)} are reported")
        for dag_id in dag_ids:
            wait_for(lambda one=dag_id: not self.dagster.is_in_progress(name, one), "all is over")
        assert count_reports() == successes


@contextmanager
def start_chaos(airflows: Airflows, folder: Path) -> Iterator[Chaos]:
    """The federation, in which Dagster runs all chaos DAGs but starts none by itself."""
    with ExitStack() as running:
        clients = {name: connect_as_demo(airflows, name) for name in APIS}
        proxies = {name: LossyProxy(client.url) for name, client in clients.items()}
        for proxy in proxies.values():
            running.enter_context(proxy)
        # The project's .env makes the addresses of the ports, and Dagster prefers it.
        ports = {f"{name.upper()}_PORT": str(proxy.port) for name, proxy in proxies.items()}
        dagster = MortalDagster(folder, {**airflows.env, **ports})
        for name, other in zip(APIS, reversed(APIS), strict=True):
            path = dagster.project / "federation_defs" / "defs" / name / "defs.yaml"
            declared = yaml.safe_load(path.read_text())
            dags = {dag_id: {"depends_on": [f"{other}/never"]} for dag_id in (PACED, *STORM)}
            declared["attributes"] |= {"select": {"tags": ["chaos"]}, "dags": dags}
            path.write_text(yaml.safe_dump(declared))
        dagster.start()
        for proxy in proxies.values():
            wait_for(lambda one=proxy: one.total, "Dagster asks by way of the proxy")
        # Of a code server that was restarted, `dagster dev` leaves the processes running (1.13).
        running.callback(dagster.kill)
        yield Chaos(dagster, clients, proxies, make_random())
