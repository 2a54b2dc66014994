"""Whether the fakes answer as the real Airflows do: the same statuses, and the same fields of the
same kinds. Without this, all that the fakes prove would be that we agree with ourselves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest
from requests import Response

from federation_defs.airflow.client import AirflowClient
from tests.contract.conftest import StartAirflow
from tests.contract.worlds import FakeWorld, RealWorld, World, make_run_id, run_dag

READS = {
    "version": "/version",
    "DAG list": "/dags?limit=1",
    "DAG": "/dags/{dag_id}",
    "run": "/dags/{dag_id}/dagRuns/{run_id}",
    "run list": "/dags/~/dagRuns?updated_at_gte=2020-01-01T00:00:00%2B00:00&order_by=id&limit=1",
    "task list": "/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=1",
    "no such path": "/nothing/here",
    "no such DAG": "/dags/nobody_knows_it",
    "no such run": "/dags/{dag_id}/dagRuns/nobody_knows_it",
    "tasks of no such run": "/dags/{dag_id}/dagRuns/nobody_knows_it/taskInstances",
    "log of no such task": "/dags/{dag_id}/dagRuns/{run_id}/taskInstances/nobody_knows_it/logs/1",
    "source of no such DAG": "/dagSources/nobody_knows_it",
    "a parameter that is none": "/dags?limit=1&nobody_knows_it=1",
}
WRITES = {
    "trigger of no such DAG": ("/dags/nobody_knows_it/dagRuns", {"logical_date": None}),
    "trigger with a field that is none": ("/dags/{dag_id}/dagRuns", {"nobody_knows_it": 1}),
    "trigger without a date": ("/dags/{dag_id}/dagRuns", {"conf": {}}),
    "trigger with a conf that is none": ("/dags/{dag_id}/dagRuns", {"conf": "x"}),
    "clear of no such run": ("/dags/{dag_id}/clearTaskInstances", {"dag_run_id": "nobody"}),
    "dry clear": ("/dags/{dag_id}/clearTaskInstances", {}),
}


@pytest.fixture
def pair(real_world: RealWorld, start_airflow: StartAirflow) -> tuple[World, World]:
    """A real Airflow, and a fake one of the same version with a DAG of its own."""
    return real_world, FakeWorld(start_airflow(real_world.api).server)


def describe(content: Any) -> Any:
    """The fields of an answer and their kinds; of a list, those of its first entry."""
    if isinstance(content, Mapping):
        return {name: describe(value) for name, value in content.items()}
    if isinstance(content, list):
        return [describe(entry) for entry in content[:1]]
    return type(content).__name__


def find_differences(real: Any, fake: Any, at: str = "answer") -> list[str]:
    """What a reader of both could tell them apart by. Null and an empty list are of any kind."""
    if "NoneType" in (real, fake) or [] in (real, fake):
        return []
    if isinstance(real, dict) and isinstance(fake, dict) and not at.endswith(("conf", "fields")):
        missing = [f"{at}.{name} is not in the fake's" for name in real.keys() - fake.keys()]
        extra = [f"{at}.{name} is only in the fake's" for name in fake.keys() - real.keys()]
        common = real.keys() & fake.keys()
        deeper = [find_differences(real[name], fake[name], f"{at}.{name}") for name in common]
        return [*missing, *extra, *chain.from_iterable(deeper)]
    if isinstance(real, list) and isinstance(fake, list):
        return find_differences(real[0], fake[0], f"{at}[0]")
    return [] if type(real) is type(fake) else [f"{at} is {real}, and {fake} in the fake's"]


def compare(real: Response, fake: Response) -> list[str]:
    """In what two answers differ."""
    kinds = [response.headers["Content-Type"].partition(";")[0] for response in (real, fake)]
    if (real.status_code, kinds[0]) != (fake.status_code, kinds[1]):
        return [f"{real.status_code} {kinds[0]}, and {fake.status_code} {kinds[1]} by the fake"]
    if "json" not in kinds[0]:
        return []
    return find_differences(describe(real.json()), describe(fake.json()))


def test_reads_are_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    runs = [run_dag(world) for world in pair]
    differences = {}
    for what, template in READS.items():
        real, fake = (
            ask(world.client, "GET", template.format(dag_id=world.dag_id, run_id=run.run_id))
            for world, run in zip(pair, runs, strict=True)
        )
        differences[what] = compare(real, fake)
    assert {what: found for what, found in differences.items() if found} == {}


def test_writes_are_refused_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    runs = [run_dag(world) for world in pair]
    differences = {}
    for what, (template, fields) in WRITES.items():
        answers = []
        for world, run in zip(pair, runs, strict=True):
            body = {"dag_run_id": run.run_id} | fields
            answers.append(ask(world.client, "POST", template.format(dag_id=world.dag_id), body))
        differences[what] = compare(*answers)
    assert {what: found for what, found in differences.items() if found} == {}


def test_a_second_trigger_is_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    body = {"dag_run_id": make_run_id(), "conf": {}}
    if pair[0].api == "v2":
        body["logical_date"] = None
    answers: list[list[Response]] = []
    for _ in range(2):
        path = "/dags/{}/dagRuns"
        answers.append(
            [ask(world.client, "POST", path.format(world.dag_id), body) for world in pair]
        )
    assert [answer[0].status_code for answer in answers] == [200, 409]
    assert [compare(*answer) for answer in answers] == [[], []]


def test_strangers_are_refused_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    clients = [world.connect_with_password("not-the-password") for world in pair]
    assert compare(*(ask(client, "GET", "/dags") for client in clients)) == []


def ask(
    client: AirflowClient, method: str, path: str, body: dict[str, Any] | None = None
) -> Response:
    return client.session.request(method, client.dialect.prefix + path, json=body)
