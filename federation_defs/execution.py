"""From an asset to an Airflow run: trigger, wait, adopt.

All selected DAGs of an instance run in one step of one process: each is triggered as soon as what
it depends on within the step has succeeded, and all are waited for together. The Airflow run id
is made from the Dagster run, so that whatever is repeated finds the run that is there already.
"""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.checks import build_check_spec, run_checks
from federation_defs.declaration import DagDeclaration
from federation_defs.errors import (
    AirflowError,
    CredentialError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    UnreachableError,
)
from federation_defs.failures import build_run_failure, build_timeout_error, join_failures
from federation_defs.naming import (
    CHECK_NAME,
    LEFT_TAG,
    build_asset_key,
    build_check_key,
    build_dag_id,
    build_execution_name,
    build_input_names,
    build_output_names,
    build_run_id,
)
from federation_defs.recovery import Heartbeat
from federation_defs.reporting import build_check_result, build_run_metadata, fetch_reported
from federation_defs.triggering import refuse_paused, start_run
from federation_defs.verdicts import Verdict, add_log_tails, fetch_verdict

MIN_POLL_S = 1.0
MAX_POLL_S = 15.0
PAUSE_CHECK_S = 10.0
TROUBLE_S = 600.0


def build_execution(
    client: AirflowClient, dags: Mapping[str, DagDeclaration], specs: Mapping[str, dg.AssetSpec]
) -> dg.AssetsDefinition:
    """The multi_asset that runs an instance's downstream DAGs.

    Args:
        dags: The declarations of the DAGs with dependencies, by DAG id.
        specs: Their asset specs, by DAG id.
    """
    # By an op and not by @multi_asset, which derives the outputs' names (of the checks at least)
    # from the keys: that fails on DAG ids with letters outside ASCII, and on two that differ in a
    # dot and a dash.
    outputs = build_output_names(list(specs))
    upstream_keys = {dep.asset_key for spec in specs.values() for dep in spec.deps}
    inputs = build_input_names(upstream_keys - {spec.key for spec in specs.values()})
    checks = {f"{name}__{CHECK_NAME}": dag_id for dag_id, name in outputs.items()}

    @dg.op(
        name=build_execution_name(client.instance),
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in (*outputs.values(), *checks)},
    )
    def run_dags(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        ids = [build_dag_id(client.instance, key) for key in context.selected_asset_keys]
        selected = {dag_id: dags[dag_id] for dag_id in ids if dag_id is not None}
        checked = {key.asset_key for key in context.selected_asset_check_keys}
        with Heartbeat(context.instance, context.run.run_id, client.instance):
            yield from _Step(context, client, selected).run()
            rules = {dag_id: dag.success_when for dag_id, dag in dags.items()}
            yield from run_checks(client, rules, checked - context.selected_asset_keys, context)

    return dg.AssetsDefinition(
        specs=list(specs.values()),
        node_def=run_dags,
        keys_by_input_name=inputs,
        keys_by_output_name={outputs[dag_id]: spec.key for dag_id, spec in specs.items()},
        check_specs_by_output_name={
            name: build_check_spec(client.instance, dag_id) for name, dag_id in checks.items()
        },
        can_subset=True,
    )


@dataclass
class _Wait:
    """A DAG run that is being waited for, or is still to be triggered; times by the monotonic
    clock, in seconds."""

    dag_id: str
    since: float
    deadline: float
    next_look: float
    next_pause_check: float
    run: DagRun | None = None
    verdict: Verdict | None = None
    trouble_since: float | None = None

    @property
    def is_over(self) -> bool:
        return self.verdict is not None

    def plan_next_look(self, now: float) -> None:
        """The longer a run takes, the less often it is asked for: from 1 s up to 15 s."""
        self.next_look = now + min(MAX_POLL_S, max(MIN_POLL_S, (now - self.since) / 20))


@dataclass
class _Step:
    """One step of a Dagster run: the selected DAGs of one instance, from trigger to end."""

    context: dg.AssetExecutionContext
    client: AirflowClient
    dags: Mapping[str, DagDeclaration]
    waits: dict[str, _Wait] = field(default_factory=dict)
    failures: dict[str, dg.Failure] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    left: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        run = self.context.run
        self.run_id = build_run_id(run.root_run_id or run.run_id)

    def run(self) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """Materializes what succeeds, as it succeeds.

        Raises:
            dagster.Failure: One or more DAGs failed; what did not depend on them was run.
        """
        if LEFT_TAG in self.context.run.tags:
            self._tell_left()  # nothing yet: a retry has the tags of the run before it
        order = self._build_order()
        while order.is_active():
            for dag_id in order.get_ready():
                if not self._enter(dag_id):
                    order.done(dag_id)
            for wait in self._look():
                del self.waits[wait.dag_id]
                yield from self._conclude(wait)
                order.done(wait.dag_id)
            self._sleep()
        if self.failures:
            raise join_failures(self.failures)

    def _build_order(self) -> TopologicalSorter[str]:
        order = TopologicalSorter({dag_id: self._upstreams(dag_id) for dag_id in self.dags})
        order.prepare()
        return order

    def _upstreams(self, dag_id: str) -> set[str]:
        """What the DAG depends on among the DAGs of this step."""
        name = self.client.instance
        return {up for instance, up in self.dags[dag_id].upstreams if instance == name} & (
            self.dags.keys()
        )

    def _enter(self, dag_id: str) -> bool:
        """Puts the DAG among those to look after; False if what it depends on did not succeed."""
        if broken := self._upstreams(dag_id) & (self.failures.keys() | self.skipped):
            self.skipped.add(dag_id)
            names = ", ".join(sorted(broken))
            self.context.log.warning(f"{dag_id} is skipped: it depends on {names}.")
            return False
        now = time.monotonic()
        deadline = now + self.dags[dag_id].trigger.timeout
        self.waits[dag_id] = _Wait(dag_id, now, deadline, now, now + PAUSE_CHECK_S)
        return True

    def _look(self) -> list[_Wait]:
        """Looks after the DAGs whose time it is; those that are over, however they ended."""
        over = []
        for wait in self.waits.values():
            now = time.monotonic()
            if now >= wait.next_look:
                try:
                    self._advance(wait, now)
                except AirflowError as error:
                    self.context.log.error(str(error))
                    self.failures[wait.dag_id] = dg.Failure(str(error), allow_retries=False)
                    self._tell_left(wait.dag_id)
                wait.plan_next_look(now)
            if wait.is_over or wait.dag_id in self.failures:
                over.append(wait)
        return over

    def _tell_left(self, *dag_ids: str) -> None:
        """Lets observation report a DAG's run that goes on without us, or was not judged."""
        self.left = (*self.left, *dag_ids)
        tags = {LEFT_TAG: json.dumps(self.left)}
        self.context.instance.add_run_tags(self.context.run.run_id, tags)

    def _advance(self, wait: _Wait, now: float) -> None:
        """Triggers the DAG, or reads how its run is doing."""
        try:
            run = self._ask(wait, now)
            self._note(wait, run)
            if run.is_finished:
                wait.verdict = self._judge(run)
        except (DagNotFoundError, DagPausedError, RunLostError):
            raise
        except AirflowError as error:
            self._bear(wait, error, now)
            return
        wait.trouble_since = None
        if not run.is_finished and now >= wait.deadline:
            raise build_timeout_error(self.client, run, now - wait.since)

    def _note(self, wait: _Wait, run: DagRun) -> None:
        if wait.run is None or wait.run.state != run.state:
            url = self.client.build_run_url(run.dag_id, run.run_id)
            self.context.log.info(f"{run.dag_id} is {run.state} in {self.client.instance}: {url}")
        wait.run = run

    def _judge(self, run: DagRun) -> Verdict:
        """What became of the run; of one that failed with its logs."""
        verdict = fetch_verdict(self.client, run, self.dags[run.dag_id].success_when)
        return verdict if verdict.is_success else add_log_tails(self.client, verdict)

    def _ask(self, wait: _Wait, now: float) -> DagRun:
        last = wait.run
        if last is None:
            rule = self.dags[wait.dag_id].success_when
            return start_run(self.client, wait.dag_id, self.run_id, self.context.run, rule)
        run = self.client.fetch_run(wait.dag_id, last.run_id)
        if run is None:
            raise RunLostError(
                self.client.instance,
                f"no longer has run '{last.run_id}' of DAG '{wait.dag_id}': it was deleted while "
                "we waited. Materialize the asset again for a new run.",
            )
        if run.state == "queued" and now >= wait.next_pause_check:
            wait.next_pause_check = now + PAUSE_CHECK_S
            refuse_paused(self.client, wait.dag_id)
        return run

    def _bear(self, wait: _Wait, error: AirflowError, now: float) -> None:
        """Goes on waiting: until the time-out for an instance that is away, for some minutes while
        it answers oddly, or there is nothing to sign in with. A trigger that was answered, if with
        a refusal, is not tried again."""
        if wait.trouble_since is None:
            wait.trouble_since = now
            self.context.log.warning(f"{error} Waiting on.")
        is_away = isinstance(error, UnreachableError)
        is_refused = wait.run is None and not isinstance(error, UnreachableError | CredentialError)
        if is_refused or (not is_away and now - wait.trouble_since > TROUBLE_S):
            raise error
        if now >= wait.deadline:
            if wait.run is None or wait.run.is_finished:  # it is over, but its tasks aren't told
                raise error
            raise build_timeout_error(self.client, wait.run, now - wait.since)

    def _conclude(self, wait: _Wait) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        if wait.dag_id in self.failures or wait.verdict is None:
            return
        if not wait.verdict.is_success:
            self.failures[wait.dag_id] = build_run_failure(self.client, wait.verdict)
        yield from self._report(wait.verdict)

    def _report(self, verdict: Verdict) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """The run's materialization, if it is a success, and the evaluation of its check; neither
        if somebody else was the first to report it."""
        own = self.context.instance.get_run_by_id(self.context.run.run_id)
        if own is not None and own.is_finished:
            raise dg.Failure(
                f"Dagster ended this run ({own.status.value}) while its worker was away; whatever "
                "is left to report is reported by observation or by a retry.",
                allow_retries=False,
            )
        run = verdict.run
        key = build_asset_key(self.client.instance, run.dag_id)
        log = fetch_reported(self.context.instance, key, [run])
        if log.lacks_materialization(verdict):
            metadata = build_run_metadata(self.client, verdict)
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
        elif verdict.is_success:
            self.context.log.info(
                f"{run.dag_id}: run {run.run_id} was reported before. To run the DAG once more, "
                "materialize the asset instead of executing this run again."
            )
        is_checked = build_check_key(key) in self.context.selected_asset_check_keys
        if is_checked and log.lacks_evaluation(verdict):
            yield build_check_result(self.client, verdict)

    def _sleep(self) -> None:
        if self.waits:
            soonest = min(wait.next_look for wait in self.waits.values())
            time.sleep(max(0.0, soonest - time.monotonic()))
