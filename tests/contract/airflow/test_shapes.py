"""Whether the fakes answer as the real Airflows do: the same statuses, and the same fields of the
same kinds. Without this, all that the fakes prove would be that we agree with ourselves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest
import requests
from requests import Response

from federation_defs.airflow.client import AirflowClient
from tests.contract.airflow.test_triggers import CONF, make_date
from tests.contract.conftest import StartAirflow
from tests.contract.worlds import (
    FakeWorld,
    RealWorld,
    World,
    find_finished_run,
    make_run_id,
    run_dag,
)

ASSETS = {"v1": "datasets", "v2": "assets"}
READS = {
    "version": "/version",
    "DAG list": "/dags?limit=1",
    "DAGs by a part of their id": "/dags?dag_id_pattern=DESCRI",
    "DAGs by tags": "/dags?tags=contract&tags=nobody_has_it&order_by=dag_id&limit=1",
    "DAGs with those that are not active": "/dags?only_active=false&order_by=dag_id&limit=1",
    "DAGs with those that are stale": "/dags?exclude_stale=false&order_by=dag_id&limit=1",
    "DAG": "/dags/{dag_id}",
    "DAG with a schedule": "/dags/described",
    "details": "/dags/dated/details",
    "details of no such DAG": "/dags/nobody_knows_it/details",
    "import errors": "/importErrors?order_by=timestamp",
    "run": "/dags/{dag_id}/dagRuns/{run_id}",
    "run list": "/dags/~/dagRuns?updated_at_gte=2020-01-01T00:00:00%2B00:00&order_by=id&limit=1",
    "task list": "/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=1",
    "assets": "/{assets}?order_by=id",
    "no such path": "/nothing/here",
    "no such DAG": "/dags/nobody_knows_it",
    "no such run": "/dags/{dag_id}/dagRuns/nobody_knows_it",
    "tasks of no such run": "/dags/{dag_id}/dagRuns/nobody_knows_it/taskInstances",
    "log of no such task": "/dags/{dag_id}/dagRuns/{run_id}/taskInstances/nobody_knows_it/logs/1",
    "source of no such DAG": "/dagSources/nobody_knows_it",
    "a parameter that is none": "/dags?limit=1&nobody_knows_it=1",
    "an order that is none": "/dags?order_by=nobody_knows_it",
    "an order of errors that is none": "/importErrors?order_by=nobody_knows_it",
}
RUN = "/dags/{dag_id}/dagRuns/{run_id}"
TRIGGER, CLEAR = "/dags/{dag_id}/dagRuns", "/dags/{dag_id}/clearTaskInstances"
NEW: dict[str, Any] = {"dag_run_id": "{run_id}", "logical_date": "2026-01-02T03:04:05+00:00"}
DAY = "2026-01-02T00:00:00+00:00"
WRITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "trigger of no such DAG": ("POST", "/dags/nobody_knows_it/dagRuns", NEW),
    "trigger with a field that is none": ("POST", TRIGGER, {"nobody_knows_it": 1}),
    "trigger of no such DAG with such a field": ("POST", "/dags/nobody/dagRuns", {"nobody": 1}),
    "trigger without a date": ("POST", TRIGGER, {"dag_run_id": "{run_id}", "conf": {}}),
    "trigger with a conf that is none": ("POST", TRIGGER, NEW | {"conf": "x"}),
    "trigger with a conf that may not be": (
        "POST",
        "/dags/described/dagRuns",
        NEW | {"dag_run_id": "new", "conf": {"day": 5}},
    ),
    "trigger with a date that is none": ("POST", TRIGGER, NEW | {"logical_date": "today"}),
    "trigger with a date of no zone": ("POST", TRIGGER, NEW | {"logical_date": "2026-01-02T03:04"}),
    "trigger with half an interval": ("POST", TRIGGER, NEW | {"data_interval_start": DAY}),
    "trigger with a partition key": ("POST", TRIGGER, NEW | {"partition_key": "2026-01-02"}),
    "stop of no such run": ("PATCH", "/dags/{dag_id}/dagRuns/nobody", {"state": "failed"}),
    "stop into no state": ("PATCH", RUN, {"state": "gone"}),
    "stop": ("PATCH", RUN, {"state": "failed"}),
    "clear of no such run": ("POST", CLEAR, {"dag_run_id": "nobody"}),
    "clear with a field that is none": ("POST", CLEAR, {"nobody_knows_it": 1}),
    "dry clear": ("POST", CLEAR, {"dag_run_id": "{run_id}"}),
    "clear": ("POST", RUN + "/clear", {"dry_run": False}),
}


def compare(real: Response, fake: Response) -> list[str]:
    """In what two answers differ."""
    kinds = [response.headers["Content-Type"].partition(";")[0] for response in (real, fake)]
    if (real.status_code, kinds[0]) != (fake.status_code, kinds[1]):
        return [f"{real.status_code} {kinds[0]}, and {fake.status_code} {kinds[1]} by the fake"]
    if "json" not in kinds[0] or "ndjson" in kinds[0]:  # a line each, not one object
        return []
    return find_differences(describe(real.json()), describe(fake.json()))


def describe(content: Any) -> Any:
    """The fields of an answer and their kinds; of a list, those of its first entry."""
    if isinstance(content, Mapping):
        return {name: describe(value) for name, value in content.items()}
    if isinstance(content, list):
        return [describe(entry) for entry in content[:1]]
    return type(content).__name__


def find_differences(real: Any, fake: Any, at: str = "answer") -> list[str]:
    """Return the differences between two answers. Null and an empty list match any type."""
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


@pytest.fixture
def pair(real_world: RealWorld, start_airflow: StartAirflow) -> tuple[World, World]:
    """A real Airflow, and a fake one of the same version with DAGs of the same names."""
    return real_world, FakeWorld(start_airflow(real_world.api).server)


def ask(client: AirflowClient, method: str, path: str, body: Any = None) -> Response:
    return client.session.request(method, client.api_version.prefix + path, json=body)


def find_odd(differences: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {what: found for what, found in differences.items() if found}


def test_reads_are_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    runs = [find_finished_run(world) for world in pair]
    differences = {}
    for what, template in READS.items():
        real, fake = (
            ask(
                world.client,
                "GET",
                template.format(dag_id=world.dag_id, run_id=run.run_id, assets=ASSETS[world.api]),
            )
            for world, run in zip(pair, runs, strict=True)
        )
        differences[what] = compare(real, fake)
    assert find_odd(differences) == {}


def test_writes_are_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    runs = [run_dag(world) for world in pair]
    differences = {}
    for what, (method, template, fields) in WRITES.items():
        answers = []
        for world, run in zip(pair, runs, strict=True):
            path = template.format(dag_id=world.dag_id, run_id=run.run_id, assets=ASSETS[world.api])
            body = {
                name: value.format(run_id=run.run_id) if isinstance(value, str) else value
                for name, value in fields.items()
            }
            answers.append(ask(world.client, method, path, body))
        differences[what] = compare(*answers)
    assert find_odd(differences) == {}


def test_triggers_are_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    date = make_date().isoformat()
    body = {
        "dag_run_id": make_run_id(),
        "conf": CONF,
        "logical_date": date,
        "data_interval_start": DAY,
        "data_interval_end": date,
        "note": "größer",
    }
    bodies = {
        "new": body,
        "again": body,
        "of the same id": body | {"logical_date": make_date().isoformat()},
        "of the same date": body | {"dag_run_id": make_run_id()},
    }
    answers = {
        what: [ask(world.client, "POST", "/dags/described/dagRuns", body) for world in pair]
        for what, body in bodies.items()
    }
    statuses = [real.status_code for real, _ in answers.values()]
    assert statuses == [200, 409, 409, 409]
    assert find_odd({what: compare(*answer) for what, answer in answers.items()}) == {}


def test_texts_are_answered_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    """Sources and logs: of 2.x as text, and of 3.x each in its own way."""
    differences = {}
    runs = [find_finished_run(world, "mapped") for world in pair]
    log = "/dags/mapped/dagRuns/{}/taskInstances/weigh/logs/{}?map_index={}"
    for accept in ("text/plain", "application/json", "application/x-ndjson"):
        dags = [world.client.fetch_dag("mapped") for world in pair]
        paths = [
            world.client.api_version.build_source_path(dag)
            for world, dag in zip(pair, dags, strict=True)
        ]
        sources = [
            world.client.session.request("GET", f"/api/{world.api}{path}", accept=accept)
            for world, path in zip(pair, paths, strict=True)
        ]
        if accept != "application/x-ndjson":  # for logs only
            differences[f"source as {accept}"] = compare(*sources)
        if pair[0].api == "v1" and accept != "text/plain":
            continue  # nobody asks for it
        for what, try_number, index in (("log", 1, 0), ("no such index", 1, 7)):
            answers = [
                world.client.session.request(
                    "GET",
                    f"/api/{world.api}" + log.format(run.run_id, try_number, index),
                    accept=accept,
                )
                for world, run in zip(pair, runs, strict=True)
            ]
            differences[f"{what} as {accept}"] = compare(*answers)
    assert find_odd(differences) == {}


def test_the_other_api_is_answered_word_by_word_as_by_a_real_airflow(
    pair: tuple[World, World],
) -> None:
    """By these words the client sees that an Airflow was upgraded. 3.x has a page for each read
    of what there is not, and so says of all else that the method is wrong."""
    other = {"v1": "v2", "v2": "v1"}[pair[0].api]
    for method, path in (
        ("GET", f"/api/{other}/dags"),
        ("GET", f"/api/{other}/version"),
        ("GET", f"/api/{pair[0].api}/nothing/here"),
        ("POST", f"/api/{other}/dags/described/dagRuns"),
        ("POST", f"/api/{other}/dags/described/clearTaskInstances"),
        ("PATCH", f"/api/{other}/dags/described/dagRuns/mine"),
    ):
        body = None if method == "GET" else {"state": "failed"}
        real, fake = (world.client.session.request(method, path, json=body) for world in pair)
        assert compare(real, fake) == []
        assert real.status_code == (405 if (other, method != "GET") == ("v1", True) else 404)
        if real.headers["Content-Type"] == "application/json":
            assert real.json() == fake.json()


def test_strangers_are_refused_as_by_a_real_airflow(pair: tuple[World, World]) -> None:
    api = pair[0].api
    account = {"username": "nobody_knows_me", "password": "not-the-password"}
    auth = (account["username"], account["password"]) if api == "v1" else None
    differences = {}
    for method, path, body in (
        ("GET", f"/api/{api}/dags", None),
        ("GET", f"/api/{api}/version", None),
        ("POST", f"/api/{api}/dags/described/dagRuns", {"nobody_knows_it": 1}),
        ("POST", f"/api/{api}/dags/described/clearTaskInstances", {"nobody_knows_it": 1}),
        ("PATCH", f"/api/{api}/dags/described/dagRuns/nobody", {"state": "failed"}),
        ("POST", "/auth/token", account),
    ):
        answers = [
            requests.request(method, world.client.url + path, json=body, auth=auth, timeout=60)
            for world in pair
        ]
        differences[f"{method} {path} {body}"] = compare(*answers)
    assert find_odd(differences) == {}
