"""Airflows to test the client on, fake and real, with the same DAGs: those in `dags/`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import randrange
from typing import Any, Protocol
from urllib.parse import quote
from uuid import uuid4

from werkzeug import Response

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.airflow.models import DagRun, TaskInstance
from federation_defs.declaration import InstanceDeclaration
from federation_defs.errors import RunNotStartedError, UnreachableError
from federation_defs.timing import RetryPolicy, Timing
from tests.contract.fakes.airflow import PASSWORD, USERNAME, FakeAirflow
from tests.contract.fakes.database import Database, RunRow, TaskSpec
from tests.contract.fakes.faults import Act
from tests.waiting import wait_for

SIGN_INS = {"v1": "basic", "v2": "password"}
# The rate limit has tests of its own; other tests would wait for it.
_HTTP = {"max_requests_per_minute": 60_000}


def connect(
    url: str, auth: str, password: str, instance: str = "metrics", username: str = USERNAME
) -> AirflowClient:
    """Build a client with a name and a password."""
    account = {"type": auth, "username": username, "password": password}
    return connect_by(url, account, instance)


def connect_by(
    url: str, auth: Mapping[str, Any], instance: str = "metrics", **declared: Any
) -> AirflowClient:
    """Build a client with any sign-in. Its errors name `<INSTANCE>_PASSWORD`."""
    values = {"name": instance, "url": url, "auth": auth, "http": _HTTP, **declared}
    hint = f"{instance.upper()}_PASSWORD"
    timing = Timing(retry_request=RetryPolicy(first_s=0.01, max_s=0.05))
    return build_client(InstanceDeclaration.model_validate(values), hint, timing)


def connect_to(server: FakeAirflow, instance: str = "metrics") -> AirflowClient:
    return connect(server.url, SIGN_INS[server.api], PASSWORD, instance)


class World(Protocol):
    """An Airflow with a quick DAG, and those in `dags/`. Tests share it, so each only looks at its
    own runs.

    Attributes:
        api: "v1" or "v2".
        client: What is tested; its account may do everything.
        dag_id: A DAG without a schedule whose runs end within seconds.
        poll_s: How long to wait before a run is asked for again.
        finished: The runs of `find_finished_run`, by DAG id.
    """

    api: str
    client: AirflowClient
    dag_id: str
    poll_s: float
    finished: dict[str, DagRun]

    def connect_with_password(self, password: str) -> AirflowClient:
        """Build a client for the same account with another password."""
        ...

    def set_paused(self, *, is_paused: bool) -> None: ...

    def set_state(self, run_id: str, state: str) -> None: ...

    def clear(self, run_id: str) -> None: ...

    @contextmanager
    def failing(self) -> Iterator[str]:
        """Let the DAG's runs fail, and give a text that is in their error."""
        ...


def make_run_id() -> str:
    """Return a unique run id with the characters of real ones."""
    return f"contract__{uuid4()}_2026-01-02T03:04:05+00:00"


def trigger_surely(client: AirflowClient, dag_id: str, run_id: str, **options: Any) -> DagRun:
    """Trigger a run, and repeat that under the same run id if the Airflow is too busy: its SQLite
    database may be locked."""

    def trigger() -> DagRun | None:
        try:
            return client.trigger_run(dag_id, run_id, **options)
        except (RunNotStartedError, UnreachableError):
            return None

    return wait_for(trigger, f"{dag_id} is triggered")


def run_dag(world: World, dag_id: str | None = None) -> DagRun:
    """Trigger a DAG, by default the quick one, and return the finished run."""
    run_id = make_run_id()
    trigger_surely(world.client, dag_id or world.dag_id, run_id)
    return wait_for_end(world, run_id, dag_id)


def find_finished_run(world: World, dag_id: str | None = None) -> DagRun:
    """Return a successful run of a DAG, for tests that only read it.

    All tests of a real Airflow share it: each run costs seconds of CPU time.
    """
    dag_id = dag_id or world.dag_id
    if dag_id not in world.finished:
        run = run_dag(world, dag_id)
        assert run.is_success
        world.finished[dag_id] = run
    return world.finished[dag_id]


@contextmanager
def pausing(world: World) -> Iterator[None]:
    """Keep the quick DAG paused until the end of the block."""
    world.set_paused(is_paused=True)
    try:
        yield
    finally:
        world.set_paused(is_paused=False)


def wait_for_end(world: World, run_id: str, dag_id: str | None = None) -> DagRun:
    def find_end() -> DagRun | None:
        run = world.client.fetch_run(dag_id or world.dag_id, run_id)
        return run if run is not None and run.is_finished else None

    return wait_for(find_end, f"run {run_id} is over", interval_s=world.poll_s)


def start_endless_run(world: World) -> tuple[DagRun, TaskInstance]:
    """Start a run that never ends. Return it and its running task."""
    run_id = make_run_id()
    world.client.trigger_run("endless", run_id)

    def find_task() -> tuple[DagRun, TaskInstance] | None:
        tasks = world.client.fetch_task_instances("endless", run_id)
        working = [task for task in tasks if task.state == "running"]
        run = world.client.fetch_run("endless", run_id)  # after them, so that it runs, too
        return (run, working[0]) if run is not None and working else None

    return wait_for(find_task, "a task is running", interval_s=world.poll_s)


def make_date() -> datetime:
    """Return a unique logical date."""
    begin = datetime(2026, 1, 2, tzinfo=timezone.utc)
    return begin + timedelta(seconds=randrange(200 * 86400))  # noqa: S311


class FakeWorld:
    """A fake Airflow, whose runs end when they are polled for the second time."""

    dag_id = "load_customers"
    poll_s = 0.01

    def __init__(self, server: FakeAirflow) -> None:
        self.server = server
        self._dag = server.database.add_dag(self.dag_id, polls=2)
        add_contract_dags(server.database, server.api)
        self.api = server.api
        self.client = connect_to(server)
        self.finished: dict[str, DagRun] = {}

    @property
    def database(self) -> Database:
        return self.server.database

    def connect_with_password(self, password: str) -> AirflowClient:
        return connect(self.server.url, SIGN_INS[self.api], password)

    def set_paused(self, *, is_paused: bool) -> None:
        self._dag.is_paused = is_paused

    def set_state(self, run_id: str, state: str) -> None:
        self.database.set_state(self._find_run(run_id), state)

    def clear(self, run_id: str) -> None:
        self.database.clear(self._find_run(run_id))

    @contextmanager
    def failing(self) -> Iterator[str]:
        self._dag.outcome = "failed"
        yield "ValueError: load could not read its table"
        self._dag.outcome = "success"

    def _find_run(self, run_id: str) -> RunRow:
        run = self.database.find_run(self.dag_id, run_id)
        assert run is not None
        return run


class RealWorld:
    """A real Airflow of the demo, with a DAG for tests.

    Args:
        client: With an account that may do everything.
        username: That account's.
    """

    poll_s = 1.0  # each request costs a real one a part of a core

    def __init__(self, client: AirflowClient, dag_id: str, username: str) -> None:
        self.api = client.api_version.api
        self.client = client
        self.dag_id = dag_id
        self.finished: dict[str, DagRun] = {}
        self._username = username

    def connect_with_password(self, password: str) -> AirflowClient:
        sign_in = SIGN_INS[self.api]
        return connect(self.client.url, sign_in, password, self.client.instance, self._username)

    def set_paused(self, *, is_paused: bool) -> None:
        self._act("PATCH", f"/dags/{self.dag_id}", {"is_paused": is_paused})

    def set_state(self, run_id: str, state: str) -> None:
        self._act("PATCH", self._run_path(run_id), {"state": state})

    def clear(self, run_id: str) -> None:
        self._act("POST", f"{self._run_path(run_id)}/clear", {"dry_run": False})

    @contextmanager
    def failing(self) -> Iterator[str]:
        name = f"{self.dag_id}__fail"
        self._act("POST", "/variables", {"key": name, "value": "true"})
        try:
            yield f"ValueError: {self.dag_id} fails because the Variable {name} is 'true'"
        finally:
            self._act("DELETE", f"/variables/{name}")

    def read(self, path: str) -> Any:
        """Return the JSON at a path below the API's prefix."""
        return self._act("GET", path).json()

    def _run_path(self, run_id: str) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{quote(run_id, safe='')}"

    def _act(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self.client.session.request(method, f"/api/{self.api}{path}", json=body)
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response


FOLDERS = {name: Path(__file__).parent / "dags" / name for name in ("warehouse", "metrics")}

LINES = 12_000
_EMPTY = "EmptyOperator"
_PARAMS = {
    "day": {
        "value": "2026-01-01",
        "description": "The day to load: größer, 日.",
        "schema": {"type": "string"},
    },
    "size": {"value": 3, "description": None, "schema": {"type": "integer", "minimum": 1}},
}
_DESCRIBED: dict[str, Any] = {
    "schedule": "0 3 29 2 *",
    "description": "Prüft, was ein Airflow von einer DAG erzählt.",
    "params": _PARAMS,
    "tags": ("contract", "größe"),
    "owners": ("zoë",),
    "tasks": (TaskSpec("begin", _EMPTY), "load", TaskSpec("end", _EMPTY)),
}
_TALK = tuple(f"line {number:05d}: größer als 数" for number in range(LINES))
_DAGS: dict[str, dict[str, Any]] = {
    "described": _DESCRIBED,
    "mapped": {
        "tasks": (
            TaskSpec(
                "weigh",
                labels=("number 10", "number 20", "number 30"),
                says=("weighing {label}",),
            ),
        )
    },
    "write_numbers": {"file": "assets.py", "tasks": ("write",)},
    "read_numbers": {"file": "assets.py", "tasks": ("read",)},
    "wordy": {"tasks": (TaskSpec("talk", says=_TALK),)},
    "dated": {"tasks": ("log_dates",), "needs_date": True},
    "endless": {
        "tasks": (
            TaskSpec("wait", says=("waiting in process 7",)),
            TaskSpec("go_on", _EMPTY),
        ),
        "polls": math.inf,
    },
    "warned": {"tasks": ("work",)},
}


def add_contract_dags(database: Database, api: str) -> None:
    """Add the DAGs that a real Airflow of this version has from `dags/`."""
    folder = FOLDERS["warehouse" if api == "v1" else "metrics"]
    dags = _DAGS | ({"partitioned": {"key_format": "%Y-%m-%d"}} if api == "v2" else {})
    for dag_id, columns in dags.items():
        dag = database.add_dag(dag_id, **{"polls": 2, "tags": ("contract",), **columns})
        dag.source = (folder / dag.file).read_text()
    database.add_asset(
        "x-contract://lake/numbers",
        name="numbers",
        group="lake",
        extra={"owner": "Zoë"},
        producers=(("write_numbers", "write"),),
        scheduled=("read_numbers",),
    )
    database.add_import_error(
        "broken.py", "Traceback (most recent call last):\nRuntimeError: bröken on purpose\n"
    )


OTHER = {"v1": "v2", "v2": "v1"}
RUN = ("write_numbers", "mine")  # over, and failed


@dataclass(frozen=True)
class Upgraded:
    """An Airflow whose token survives an upgrade, and a client that knows its API."""

    server: FakeAirflow
    client: AirflowClient

    def connect(self, **declared: Any) -> AirflowClient:
        """Build a client that has not asked anything yet."""
        return connect_by_token(self.server, **declared)

    def upgrade(self) -> None:
        """Switch to the other API, up or down."""
        self.server.api = OTHER[self.server.api]

    def upgrade_after(self, act: Act) -> Response:
        response = act()
        self.upgrade()
        return response


def connect_by_token(server: FakeAirflow, **declared: Any) -> AirflowClient:
    return connect_by(server.url, {"type": "token", "token": server.token}, **declared)


@contextmanager
def start_upgradable(api: str) -> Iterator[Upgraded]:
    """Start one with the DAGs in `dags/` and pages of two entries."""
    with FakeAirflow(api) as server:
        server.takes_tokens = True
        add_contract_dags(server.database, "v2")
        server.database.finish_run(server.database.start_run(*RUN), "failed")
        for endpoints in server.all_endpoints.values():
            endpoints.page_limit = 2
        client = connect_by_token(server)
        client.fetch_version()
        yield Upgraded(server, client)
