"""The job that refreshes the states of instances, and tells what the code location does not know
yet.

Where states are versioned, a refresh stores a version, and each load of the code location reads the
last one. So a person, or the webserver, has to reload the code location for new DAGs to be assets.
"""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import dagster as dg

from federation_defs.component import FederatedAirflow
from federation_defs.dagster_io.deployment import fetch_last_state
from federation_defs.errors import AirflowError, ReloadFailedError
from federation_defs.naming import (
    REFRESH_JOB_NAME,
    REFRESH_OP_NAME,
    STATE_CHECK_NAME,
    build_state_asset_key,
)
from federation_defs.outcome import join_names
from federation_defs.state import Snapshot, read_snapshot
from federation_defs.threads import run_calls
from federation_defs.validation import find_absent_dags

RELOAD_VARIABLE = "FEDERATION_RELOAD_URL"

_MAX_FETCHES = 32  # at a time, each from an instance of its own


def build_refresh(components: Iterable[FederatedAirflow], cron: str) -> dg.Definitions:
    """Build the job of the instances whose states are versioned, its schedule, and an asset with a
    check for each of them; nothing without such an instance.

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

    @dg.multi_asset_check(
        name=REFRESH_OP_NAME, specs=_build_check_specs(refreshed), can_subset=True
    )
    def refresh_states(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = sorted(key.asset_key for key in context.selected_asset_check_keys)
        yield from _refresh([refreshed[key] for key in keys], context)

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
            f"{REFRESH_JOB_NAME} stores it, and a load of the code location reads it.",
        )
        for key, component in refreshed.items()
    ]
    return dg.Definitions(
        assets=assets, asset_checks=[refresh_states], jobs=[job], schedules=[schedule]
    )


def _build_check_specs(
    refreshed: Mapping[dg.AssetKey, FederatedAirflow],
) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            STATE_CHECK_NAME,
            asset=key,
            description=f"The code location was loaded with the DAGs that Airflow "
            f"{component.member.name} has. Executing it refreshes the state.",
        )
        for key, component in refreshed.items()
    ]


def _refresh(
    components: Sequence[FederatedAirflow], context: dg.AssetCheckExecutionContext
) -> Iterator[dg.AssetCheckResult]:
    """Store the states that have changed, reload the code location if it is to be, and evaluate the
    checks. The state of an instance that can't be read stays as it is.

    Raises:
        dagster.Failure: An instance can't be read, or the code location can't be reloaded.
    """
    stored = [_fetch_stored(component, context.instance) for component in components]
    both = list(zip(components, stored, strict=True))
    run_calls([partial(component.fetch, last) for component, last in both], _MAX_FETCHES)
    errors: list[str] = []
    fetched: list[tuple[FederatedAirflow, Snapshot]] = []
    is_news = False
    for component, last in both:
        (snapshot,) = component.fetched
        if isinstance(snapshot, AirflowError):
            errors.append(f"{snapshot} Its state stays as it is.")
        else:
            fetched.append((component, snapshot))
            if not _is_same(snapshot, last):
                is_news = True
                # Only states that are not versioned are kept in the project, at its root.
                asyncio.run(component.refresh_state(Path()))
                context.log.info(f"Airflow '{component.member.name}' has a new version of state.")
        component.fetched.clear()
    is_reloaded = False
    if any(not _is_same(snapshot, component.snapshot) for component, snapshot in fetched):
        origin = context.run.remote_job_origin  # None in a process without a code location
        try:
            is_reloaded = origin is not None and _reload(origin.location_name)
        except ReloadFailedError as error:
            errors.append(str(error))
    # If there is no news, the reload that an earlier run made had no effect.
    for component, snapshot in fetched:
        yield _evaluate(component, snapshot, is_loaded=is_reloaded and is_news)
    if errors:
        raise dg.Failure("\n".join(errors), allow_retries=False)


def _fetch_stored(component: FederatedAirflow, instance: dg.DagsterInstance) -> Snapshot | None:
    """Fetch the last state, which may be newer than the one that was loaded."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "state")
        fetch_last_state(instance, component.defs_state_config.key, path)
        return read_snapshot(path)


def _is_same(snapshot: Snapshot, other: Snapshot | None) -> bool:
    return other is not None and replace(snapshot, taken_at=other.taken_at) == other


def _evaluate(
    component: FederatedAirflow, snapshot: Snapshot, *, is_loaded: bool
) -> dg.AssetCheckResult:
    """Compare what an instance has with what the code location was loaded with.

    Args:
        is_loaded: The code location was just loaded with the snapshot.
    """
    name, loaded = component.member.name, component.snapshot
    now = {*snapshot.dags, *snapshot.undescribed}
    before = {*loaded.dags, *loaded.undescribed} if loaded else set[str]()
    partitions = loaded.partitions if loaded else {}
    changes = {
        "New": now - before,
        "Gone": before - now,
        "With other partitions": {
            dag_id
            for dag_id in snapshot.partitions
            if snapshot.partitions[dag_id] != partitions.get(dag_id)
        },
    }
    said = [
        f"{what}: {join_names(sorted(dag_ids))}." for what, dag_ids in changes.items() if dag_ids
    ] or [f"The code location knows all {len(now)} DAGs."]
    is_behind = any(changes.values()) and not is_loaded
    if is_behind:
        said.append(
            "Reload the code location; until then it has the DAGs as of "
            f"{loaded.taken_at if loaded else 'their declaration'}."
        )
    elif any(changes.values()):
        said.append("The code location was reloaded.")
    said += find_absent_dags(name, snapshot, component.named).values()
    return dg.AssetCheckResult(
        asset_key=build_state_asset_key(name),
        check_name=STATE_CHECK_NAME,
        passed=not is_behind,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(said),
        metadata={"DAGs": len(now), "As of": snapshot.taken_at},
    )


def _reload(code_location: str) -> bool:
    """Reload the code location, if `FEDERATION_RELOAD_URL` is the address of Dagster's webserver.

    A code server that was not started by `dagster code-server start` says yes, and does nothing
    (1.13).

    Raises:
        ReloadFailedError: The webserver can't be asked, or the code location can't be loaded.
    """
    url = os.environ.get(RELOAD_VARIABLE, "").strip()
    if not url:
        return False
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ReloadFailedError(code_location, "it is no web address as http://webserver:3000")
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
            parts.hostname,
            parts.port,
            use_https=parts.scheme == "https",
            path_prefix=parts.path.rstrip("/"),
        )
        info = client.reload_repository_location(code_location)
    except DagsterGraphQLClientError as error:
        # Its own message has the whole query.
        raise ReloadFailedError(code_location, str(error.__cause__ or error)) from error
    if info.status != ReloadRepositoryLocationStatus.SUCCESS:
        raise ReloadFailedError(code_location, f"{info.failure_type}: {info.message}")
    return True
