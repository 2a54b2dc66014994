"""Dagster's daemon, played by a test: it evaluates an event sensor and runs what that requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol
from uuid import uuid4

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.reports import OUTCOME_LABEL, RUN_ID_LABEL, SIGNAL_LABEL
from federation_defs.declaration import InstanceDeclaration
from federation_defs.dependencies.sensor import build_event_sensor
from federation_defs.naming import build_asset_key, build_dag_run_tag
from federation_defs.timing import Timing
from tests.contract.execution.executing import DEFAULT_TRIGGER, FAST, build_assets

DAG = "customer_metrics"


def declare(dags: Mapping[str, Any], client: AirflowClient) -> InstanceDeclaration:
    return InstanceDeclaration.model_validate(
        {
            "name": client.instance,
            "url": client.url,
            "auth": {"type": "basic", "username": "nobody", "password": "nothing"},
            "dags": {
                dag_id: {**dag, "trigger": {**DEFAULT_TRIGGER, **dag.get("trigger", {})}}
                for dag_id, dag in dags.items()
            },
        }
    )


def report(
    instance: dg.DagsterInstance,
    upstream: str,
    state: str = "success",
    run_id: str = "",
    partition: str | None = None,
    **more: Any,
) -> None:
    """Store what observation stores about a run of an upstream, or about a Dagster asset."""
    airflow, slash, dag_id = upstream.partition("/")
    key = build_asset_key(airflow, dag_id) if slash else dg.AssetKey(upstream)
    metadata = {RUN_ID_LABEL: run_id, **more}
    if state == "success":
        metadata |= {OUTCOME_LABEL: state}
        event = dg.AssetMaterialization(key, metadata=metadata, partition=partition)
    else:
        label = OUTCOME_LABEL if state == "failure" else SIGNAL_LABEL
        event = dg.AssetObservation(key, metadata={**metadata, label: state}, partition=partition)
    instance.report_runless_asset_event(event)


def list_counted(instance: dg.DagsterInstance) -> list[str]:
    """Return which dependencies of the DAG are told to count from then on, the first told first."""
    key = build_asset_key("metrics", DAG)
    records = instance.fetch_observations(key, limit=100, ascending=True).records
    events = [record.asset_observation for record in records]
    return [
        str(event.metadata["Follows"].value)
        for event in events
        if event and "Follows" in event.metadata
    ]


class EventDaemon:
    """A daemon that evaluates the event sensor of one Airflow.

    Args:
        dags: What is declared of the DAGs, by id.
        upstreams: What is declared of the DAGs of other instances, by instance and id.
    """

    def __init__(
        self,
        client: AirflowClient,
        instance: dg.DagsterInstance,
        dags: Mapping[str, Any],
        upstreams: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        timing: Timing = FAST,
    ) -> None:
        self.client, self.instance, self.upstreams = client, instance, upstreams
        self.timing = timing
        self.cursor: str | None = None
        self.declare(dags)

    def declare(self, dags: Mapping[str, Any]) -> None:
        """Start a code server with these declarations."""
        own = declare(dags, self.client)
        instances = {
            name: own.model_copy(update={"name": name, "dags": declare(each, self.client).dags})
            for name, each in self.upstreams.items()
        }
        self.dags = own.downstreams
        self.instances = {**instances, own.name: own}
        self.assets = build_assets(self.client, dags)
        self.restart()
        self.defs = dg.Definitions([self.assets], sensors=[self.sensor])

    def restart(self) -> None:
        """Start another code server."""
        self.sensor = build_event_sensor(self.client, self.dags, self.instances, timing=self.timing)

    def build_context(self, cursor: str | None) -> dg.SensorEvaluationContext:
        return dg.build_sensor_context(
            self.instance, cursor, definitions=self.defs, last_sensor_start_time=1.0
        )

    def evaluate(self, cursor: str | None = None) -> list[dg.RunRequest]:
        """Evaluate the sensor, store its events and not its cursor, and return what it requests."""
        with self.build_context(cursor or self.cursor) as context:
            ticked = self.sensor.evaluate_tick(context)
        self.ticked = ticked
        for event in ticked.asset_events:
            self.instance.report_runless_asset_event(event)
        return list(ticked.run_requests or ())

    def tick(self) -> list[str]:
        """Evaluate the sensor, run what it requests, and return the causes."""
        causes = []
        for request in self.evaluate_new():
            assert request.asset_selection
            (key,) = request.asset_selection
            dg.materialize(
                [self.assets],
                selection=dg.AssetSelection.assets(key),
                partition_key=request.partition_key,
                instance=self.instance,
                tags=build_tags(request),
                raise_on_error=False,
            )
            causes.append(find_cause(request))
        self.cursor = self.ticked.cursor
        return causes

    def evaluate_new(self) -> Iterator[dg.RunRequest]:
        """Evaluate the sensor, and iterate over the requests whose runs were not created before."""
        for request in self.evaluate():
            filters = dg.RunsFilter(tags={"dagster/run_key": str(request.run_key)})
            if not self.instance.get_run_records(filters, limit=1):
                yield request

    @property
    def skip_reason(self) -> str:
        return self.ticked.skip_message or ""


def build_tags(request: dg.RunRequest) -> dict[str, str]:
    """Return the tags of the run that the daemon creates for a request."""
    tags = {**request.tags, "dagster/run_key": str(request.run_key)}
    return tags | ({"dagster/partition": request.partition_key} if request.partition_key else {})


def add_run(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.DagsterRun:
    """Create the run of a request, which goes on."""
    run = dg.DagsterRun(
        job_name="any",
        run_id=str(uuid4()),
        status=dg.DagsterRunStatus.STARTED,
        tags=build_tags(request),
        asset_selection=frozenset(request.asset_selection or ()),
    )
    instance.add_run(run)
    return run


def find_cause(request: dg.RunRequest) -> str:
    (cause,) = (
        value for name, value in request.tags.items() if name.startswith("federation/after.")
    )
    return cause


class Model(Protocol):
    """What has to run, by the words of the declaration.

    Attributes:
        active: What goes on, the oldest first.
    """

    active: list[Any]

    def tick(self) -> list[Any]:
        """Return what begins."""
        ...


class Player(EventDaemon):
    """A daemon beside a model. Its runs go on until the test ends them.

    Args:
        name: Tells what the model calls a run, given the request.
    """

    def __init__(
        self, model: Model, name: Callable[[dg.RunRequest], str | None], *given: Any
    ) -> None:
        super().__init__(*given)
        self.model, self.name = model, name
        self.runs: list[dg.DagsterRun] = []

    def play(self, event: str, what: str = "") -> list[Any]:
        """Let something happen, and return what begins: a tick, a tick whose cursor is lost in a
        crash, a restart, or the end of the oldest run."""
        begun: list[Any] = []
        if event in ("tick", "crash"):
            begun = [self.name(request) for request in self.create_runs()]
            assert begun == self.model.tick(), what
        if event == "tick":
            self.cursor = self.ticked.cursor
        elif event == "finish" and self.runs:
            run = self.runs.pop(0)
            self.model.active.pop(0)
            self.instance.add_run_tags(run.run_id, {build_dag_run_tag("metrics", DAG): "launched"})
            self.instance.report_run_failed(run, "it has ended")
        elif event != "finish":
            self.restart()
        return begun

    def create_runs(self) -> Iterator[dg.RunRequest]:
        """Evaluate the sensor, and create the runs that it requests."""
        for request in self.evaluate_new():
            self.runs.append(add_run(self.instance, request))
            yield request
