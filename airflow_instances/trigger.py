"""Trigger a DAG of the demo: `trigger.py [DAG_ID] [--fail]`, by default load_customers.

With `--fail`, the run fails: its DAG's Variable `<dag_id>__fail` is set until the run has ended.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

import requests
from instances import AirflowInstance, SignInRefusedError, build_instances
from settings import SettingsError, read_settings

_END_TIMEOUT_S = 300
_POLL_INTERVAL_S = 0.5


class TriggerError(Exception):
    """The DAG was not triggered, or its run did not end in time."""


def request(
    instance: AirflowInstance, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Send a request to an instance that is signed in, and return its answer.

    Raises:
        SignInRefusedError: The account is refused.
        TriggerError: The instance does not answer, or refuses.
    """
    try:
        response = instance.request(method, path, body)
    except requests.RequestException as error:
        raise _describe_silence(instance, error) from error
    if not response.ok:
        raise TriggerError(
            f"Airflow '{instance.name}' refused {method} {path} ({response.status_code}):"
            f" {response.text}"
        )
    return response.json() if response.content else {}


def find_instance(instances: list[AirflowInstance], dag_id: str) -> AirflowInstance:
    """Return the instance that has a DAG, signed in.

    Raises:
        SignInRefusedError: An account is refused.
        TriggerError: An instance does not answer, or none has the DAG.
    """
    known: dict[str, AirflowInstance] = {}
    for instance in instances:
        try:
            instance.sign_in()
        except requests.RequestException as error:
            raise _describe_silence(instance, error) from error
        found = request(instance, "GET", "/dags?limit=100")["dags"]
        known |= {dag["dag_id"]: instance for dag in found}
        if dag_id in known:
            return instance
    similar = get_close_matches(dag_id, known, n=1)
    hint = f"; did you mean '{similar[0]}'?" if similar else f". They have: {', '.join(known)}."
    raise TriggerError(f"The demo's Airflows have no DAG '{dag_id}'{hint}")


@contextmanager
def failing_on_request(instance: AirflowInstance, dag_id: str) -> Iterator[None]:
    """Let all runs of a DAG fail inside of the block, also if it is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    variable = f"{dag_id}__fail"
    request(instance, "POST", "/variables", {"key": variable, "value": "true"})
    try:
        yield
    finally:
        request(instance, "DELETE", f"/variables/{quote(variable, safe='')}")


def wait_for_end(instance: AirflowInstance, dag_id: str, run_id: str) -> str:
    """Return the state in which a run has ended.

    Raises:
        TriggerError: It did not end in time.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    while time.monotonic() < deadline:
        state: str = request(instance, "GET", f"{_runs_path(dag_id)}/{quote(run_id)}")["state"]
        if state in ("success", "failed"):
            return state
        time.sleep(_POLL_INTERVAL_S)
    raise TriggerError(
        f"Run '{run_id}' of {dag_id} has not ended after {_END_TIMEOUT_S} s. Is the DAG paused?"
    )


def _runs_path(dag_id: str) -> str:
    return f"/dags/{quote(dag_id, safe='')}/dagRuns"


def _describe_silence(instance: AirflowInstance, error: Exception) -> TriggerError:
    return TriggerError(
        f"Airflow '{instance.name}' does not answer at {instance.settings.url}"
        f" ({type(error).__name__}). Is 'make demo' running, on this port?"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dag_id", nargs="?", default="load_customers")
    parser.add_argument("--fail", action="store_true", help="let the run fail")
    arguments = parser.parse_args()
    dag_id: str = arguments.dag_id
    try:
        demo = read_settings()
        instance = find_instance(build_instances(demo), dag_id)
        with failing_on_request(instance, dag_id) if arguments.fail else nullcontext():
            run = request(instance, "POST", _runs_path(dag_id), instance.trigger_body)
            run_id: str = run["dag_run_id"]
            page = instance.run_page.format(dag_id=dag_id, run_id=quote(run_id))
            print(f"Triggered {dag_id} in {instance.name}: {instance.settings.url}{page}")
            print(f"See what follows in Dagster: {demo.dagster_url}/asset-groups", flush=True)
            if arguments.fail:
                print(f"It ended: {wait_for_end(instance, dag_id, run_id)}")
    except (SettingsError, SignInRefusedError, TriggerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
