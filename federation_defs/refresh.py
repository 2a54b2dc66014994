"""The job that refreshes the states of instances, and the checks that show whether the code
location was loaded with them.

Where states are versioned, a refresh stores a version, and each load of the code location reads the
last one. So a person, or the webserver, has to reload the code location for new DAGs to be assets.
"""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import Logger
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from urllib.parse import urlsplit

import dagster as dg

from federation_defs.component import FederatedAirflow
from federation_defs.dagster_io.deployment import fetch_last_states, restore_versions
from federation_defs.declaration import check_url
from federation_defs.errors import AirflowError, ReloadFailedError
from federation_defs.naming import (
    REFRESH_JOB_NAME,
    REFRESH_OP_NAME,
    STATE_CHECK_NAME,
    build_state_asset_key,
)
from federation_defs.outcome import join_names
from federation_defs.state import Snapshot, read_snapshot
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing
from federation_defs.validation import find_absent_dags

RELOAD_VARIABLE = "FEDERATION_RELOAD_URL"

_MAX_FETCHES = 32  # at a time, each from an instance of its own


def build_refresh(
    components: Iterable[FederatedAirflow], cron: str, timing: Timing | None = None
) -> dg.Definitions:
    """Build the job that refreshes the instances whose states are versioned, its schedule, and an
    asset with a check for each of these instances. Nothing if there are none.

    Executing the check of one instance refreshes its state.

    Args:
        cron: When to refresh the states, in UTC.
    """
    refreshed = {
        build_state_asset_key(component.member.name): component
        for component in components
        if component.has_versioned_state
    }
    if not refreshed:
        return dg.Definitions()

    specs = [
        dg.AssetCheckSpec(
            STATE_CHECK_NAME,
            asset=key,
            description=f"The code location was loaded with the DAGs that Airflow "
            f"{component.member.name} has. Executing this check refreshes the state.",
        )
        for key, component in refreshed.items()
    ]

    @dg.multi_asset_check(name=REFRESH_OP_NAME, specs=specs, can_subset=True)
    def refresh_states(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = sorted(key.asset_key for key in context.selected_asset_check_keys)
        yield from _refresh([refreshed[key] for key in keys], context, timing or Timing())

    job = dg.define_asset_job(
        REFRESH_JOB_NAME,
        selection=dg.AssetSelection.checks(refresh_states),
        description="Stores which DAGs the Airflows have, if that has changed.",
        tags={"dagster/max_retries": "0"},  # the next tick of the schedule tries again
    )
    schedule = dg.ScheduleDefinition(
        job=job, cron_schedule=cron, default_status=dg.DefaultScheduleStatus.RUNNING
    )
    assets = [
        dg.AssetSpec(
            key,
            group_name=component.member.name,
            kinds={"airflow"},
            description=f"Which DAGs Airflow {component.member.name} has. The job "
            f"{REFRESH_JOB_NAME} stores this list, and each load of the code location reads it.",
        )
        for key, component in refreshed.items()
    ]
    return dg.Definitions(
        assets=assets, asset_checks=[refresh_states], jobs=[job], schedules=[schedule]
    )


def _refresh(
    components: Sequence[FederatedAirflow], context: dg.AssetCheckExecutionContext, timing: Timing
) -> Iterator[dg.AssetCheckResult]:
    """Store the states that have changed, reload the code location if it lacks a change, and
    evaluate the checks. An instance that can't be refreshed fails its own check only."""
    stored = _fetch_stored(components, context.instance)
    calls = [partial(component.fetch, last) for component, last in stored.items()]
    run_in_threads(calls, _MAX_FETCHES, timing.refresh_s)
    outcomes = _store_changed(stored, context.instance, timing)
    is_reloaded, problem = False, ""
    if any(
        isinstance(outcome, Snapshot) and _find_changes(outcome, component.snapshot)
        for component, outcome in outcomes.items()
    ):
        origin = context.run.remote_job_origin  # None in a process without a code location
        try:
            is_reloaded = origin is not None and _reload(origin.location_name)
        except ReloadFailedError as error:
            problem = str(error)
    for component, outcome in outcomes.items():
        if isinstance(outcome, Snapshot):
            # If the last version was not loaded, reloads have no effect.
            last = stored[component]
            was_current = not (last and _find_changes(last, component.snapshot))
            yield _evaluate(component, outcome, problem, is_loaded=is_reloaded and was_current)
        else:
            yield _build_failure(component.member.name, outcome, context.log)


def _fetch_stored(
    components: Iterable[FederatedAirflow], instance: dg.DagsterInstance
) -> dict[FederatedAirflow, Snapshot | None]:
    """Fetch the last states, which may be newer than the loaded ones."""
    keys = {component: component.defs_state_config.key for component in components}
    with TemporaryDirectory() as folder:
        newer, loaded = fetch_last_states(instance, keys.values(), Path(folder))
        return {
            component: component.snapshot if key in loaded else read_snapshot(newer.get(key))
            for component, key in keys.items()
        }


def _store_changed(
    stored: Mapping[FederatedAirflow, Snapshot | None], instance: dg.DagsterInstance, timing: Timing
) -> dict[FederatedAirflow, Snapshot | Exception]:
    """Store the fetched states that have changed. Return each state, or the error in its place."""
    versions: dict[str, str] = {}
    outcomes: dict[FederatedAirflow, Snapshot | Exception] = {}
    for component, last in stored.items():
        (outcome,) = component.fetched or [TimeoutError(f"not read in {timing.refresh_s:g} s")]
        outcomes[component] = outcome
        if isinstance(outcome, Exception) or (
            last is not None and replace(outcome, taken_at=last.taken_at) == last
        ):
            continue
        try:
            # The path of the project matters only for states that are not versioned.
            version = asyncio.run(component.refresh_state(Path()))
            versions[component.defs_state_config.key] = version
        except Exception as error:  # noqa: BLE001 - of any storage
            outcomes[component] = error
    restore_versions(instance, versions)
    return outcomes


def _find_changes(snapshot: Snapshot, loaded: Snapshot | None) -> dict[str, frozenset[str]]:
    """Find the DAGs for which the code location has to be reloaded, by the kind of change."""
    now = snapshot.selected_dag_ids
    before = loaded.selected_dag_ids if loaded else frozenset[str]()
    partitions = loaded.partitions if loaded else {}
    changes = {
        "New": now - before,
        "Gone": before - now,
        "With other partitions": frozenset(
            dag_id
            for dag_id in snapshot.partitions
            if snapshot.partitions[dag_id] != partitions.get(dag_id)
        ),
    }
    return {what: dag_ids for what, dag_ids in changes.items() if dag_ids}


def _evaluate(
    component: FederatedAirflow, snapshot: Snapshot, problem: str, *, is_loaded: bool
) -> dg.AssetCheckResult:
    """Compare what an instance has with what the code location was loaded with.

    Args:
        problem: Why the code location was not reloaded, as sentences.
        is_loaded: Whether the code location was just loaded with the snapshot.
    """
    name, loaded = component.member.name, component.snapshot
    changes = _find_changes(snapshot, loaded)
    count = len(snapshot.selected_dag_ids)
    sentences = [f"{what}: {join_names(sorted(dag_ids))}." for what, dag_ids in changes.items()]
    if not changes:
        sentences = [f"The code location has all {count} DAGs."]
    elif is_loaded:
        sentences.append("The code location was reloaded.")
    else:
        as_of = loaded.taken_at if loaded else "their declaration"
        sentences.append(f"Reload the code location; until then it has the DAGs as of {as_of}.")
        sentences += [problem] if problem else []
    sentences += find_absent_dags(name, snapshot, component.named).values()
    passed = is_loaded or not changes
    return _build_result(name, sentences, passed, {"DAGs": count, "As of": snapshot.taken_at})


def _build_failure(name: str, error: Exception, log: Logger) -> dg.AssetCheckResult:
    """Build the evaluation of an instance that could not be refreshed."""
    is_known = isinstance(error, AirflowError)
    message = str(error) if is_known else f"Airflow '{name}' can't be refreshed: {error!r}."
    log.warning(message, exc_info=None if is_known else error)
    return _build_result(name, [message, "Its state stays as it is."])


def _build_result(
    name: str,
    sentences: Iterable[str],
    passed: bool = False,
    metadata: Mapping[str, int | str] = MappingProxyType({}),
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=build_state_asset_key(name),
        check_name=STATE_CHECK_NAME,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(sentences),
        metadata=metadata,
    )


def _reload(code_location: str) -> bool:
    """Reload the code location through Dagster's webserver at `FEDERATION_RELOAD_URL`. Return
    False if that is not set.

    A code server that was not started by `dagster code-server start` reports success, and does
    nothing (1.13).

    Raises:
        ReloadFailedError: The webserver can't be asked, or the code location can't be loaded.
    """
    url = os.environ.get(RELOAD_VARIABLE, "").strip()
    if not url:
        return False
    if "@" in url:
        seen = "a user name or password in the address can't be sent"
        raise ReloadFailedError(code_location, seen)
    try:
        parts = urlsplit(check_url(url))
    except ValueError:
        seen = "the address is not in the form http://webserver:3000"
        raise ReloadFailedError(code_location, seen) from None
    try:
        from dagster_graphql import (
            DagsterGraphQLClient,
            DagsterGraphQLClientError,
            ReloadRepositoryLocationStatus,
        )
    except ImportError:
        raise ReloadFailedError(code_location, "dagster-graphql is not installed") from None
    try:
        client = DagsterGraphQLClient(
            parts.hostname or "",  # `check_url` refuses an empty one
            parts.port,
            use_https=parts.scheme == "https",
            path_prefix=parts.path.rstrip("/"),
        )
        info = client.reload_repository_location(code_location)
    except DagsterGraphQLClientError as error:
        # The message of the error itself has the whole query.
        raise ReloadFailedError(code_location, str(error.__cause__ or error)) from error
    if info.status != ReloadRepositoryLocationStatus.SUCCESS:
        raise ReloadFailedError(code_location, f"{info.failure_type}: {info.message}")
    return True
