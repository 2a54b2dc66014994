"""Snapshots: the DAGs of an instance, and their properties.

A snapshot is the state of a component: fetched when Dagster refreshes the state, kept on disk or in
Dagster's state storage, and read at every load. So a code location loads even if every Airflow is
down.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, describe_problem
from federation_defs.declaration import InstanceDeclaration, SelectDeclaration
from federation_defs.schedules import AutoPartitions, find_auto_partitions, resolve_schedule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DagSnapshot:
    """One selected DAG.

    Attributes:
        airflow_tags: The DAG's own tags.
        is_present: Whether its file exists and parses; it may be paused. Airflow remembers a DAG
            whose file has gone or no longer parses.
    """

    dag_id: str
    url: str
    is_paused: bool
    description: str | None
    schedule: str | None
    owners: tuple[str, ...]
    airflow_tags: tuple[str, ...]
    is_present: bool = True
    has_import_errors: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The DAGs of an instance at one time.

    Attributes:
        taken_at: When the fetch began, as ISO 8601 in UTC, to the second.
        dags: The selected DAGs by id.
        unselected: The ids of the other DAGs.
        undescribed: The ids of selected DAGs of which only the id can be read.
        problems: Why DAGs of `unselected` can't run, by id of those that can't. They are assets if
            they are declared or depended on.
        partitions: What `cron: auto` stands for, by id of the DAGs that declare it.
        api: "v1" or "v2"; None if the snapshot was taken before this was kept.
    """

    taken_at: str
    dags: Mapping[str, DagSnapshot]
    unselected: tuple[str, ...]
    undescribed: tuple[str, ...] = ()
    api: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, AutoPartitions] = field(default_factory=dict)
    format: Literal[1] = 1  # of the file; unknown keys are ignored

    @property
    def selected_dag_ids(self) -> frozenset[str]:
        """The ids of the DAGs that are assets even if they are not declared."""
        return frozenset([*self.dags, *self.undescribed])

    @cached_property
    def present_dag_ids(self) -> frozenset[str]:
        """The ids of the DAGs whose file exists and parses, or whose row can't be read."""
        present = (dag.dag_id for dag in self.dags.values() if dag.is_present)
        return frozenset([*present, *self.unselected, *self.undescribed])

    def describe_problem(self, dag_id: str) -> str | None:
        """Return why a DAG can't run, as the end of a sentence. None if nothing is known to be
        wrong with it."""
        if self.present_dag_ids and dag_id not in self.present_dag_ids:
            return "has vanished from its Airflow"
        dag = self.dags.get(dag_id)
        if dag is None:
            return self.problems.get(dag_id)
        return describe_problem(dag.is_paused, dag.has_import_errors)


_ADAPTER = TypeAdapter(Snapshot)


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot to a file that only its owner can read. Replaces the file in one step."""
    with TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder, path.name)
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(snapshot), indent=1))
        new.replace(path)


def read_snapshot(path: Path | None) -> Snapshot | None:
    """Return the snapshot in a file. None if there is no file, or, with a warning, if it can't be
    read.

    If only `partitions` can't be read, they are left out, with a warning.
    """
    if path is None:
        return None
    content = None
    try:
        content = json.loads(path.read_bytes())
        return _ADAPTER.validate_python(content)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        if isinstance(content, dict) and {each["loc"][:1] for each in problems} == {
            ("partitions",)
        }:
            _log.warning("Ignoring the partitions in %s. A refresh resolves them again.", path)
            return _ADAPTER.validate_python({**content, "partitions": {}})
        problem = problems[0]
        reason = f"{problem['loc']} {problem['msg']}"
    except (OSError, RecursionError, ValueError) as error:
        reason = str(error)
    _log.warning(
        "Ignoring the state %s: it can't be read (%a). A refresh replaces it.", path, reason
    )
    return None


def fetch_snapshot(
    client: AirflowClient, declaration: InstanceDeclaration, last: Snapshot | None = None
) -> Snapshot:
    """Fetch the DAGs of an instance.

    A selected DAG whose file has gone or no longer parses is kept for `observe.lookback` after the
    file last defined it. The file may be missing for a minute only, and runs that end meanwhile are
    reported. For the same reason, a DAG whose row can't be read is selected whatever its tags are.

    Args:
        last: The snapshot before. Only its partitions of DAGs with `cron: auto` are kept.

    Raises:
        AirflowError: The instance could not be read completely.
    """
    now = datetime.now(timezone.utc)
    since = now - timedelta(seconds=declaration.observe.lookback)
    dags, unreadable = client.fetch_known_dags()
    select = declaration.select
    selected = {dag.dag_id for dag in dags if is_selected(dag.dag_id, dag.tags, select)}
    undescribed = {dag_id for dag_id in unreadable if is_selected(dag_id, None, select)}
    present = {dag.dag_id for dag in dags if dag.is_present} | unreadable
    kept = (dag for dag in dags if dag.is_present or (dag.last_parsed_at or since) > since)
    return Snapshot(
        taken_at=now.isoformat(timespec="seconds"),
        dags={
            dag.dag_id: DagSnapshot(
                dag_id=dag.dag_id,
                url=client.build_dag_url(dag.dag_id),
                is_paused=dag.is_paused,
                description=dag.description,
                schedule=dag.schedule,
                owners=dag.owners,
                airflow_tags=dag.tags,
                is_present=dag.is_present,
                has_import_errors=dag.has_import_errors,
            )
            for dag in kept
            if dag.dag_id in selected
        },
        unselected=tuple(sorted(present - selected - undescribed)),
        undescribed=tuple(sorted(undescribed)),
        problems={
            dag.dag_id: dag.problem
            for dag in dags
            if dag.is_present and dag.dag_id not in selected and dag.problem
        },
        api=client.api_version.api,
        partitions=_fetch_partitions(client, declaration, dags, last),
    )


def _fetch_partitions(
    client: AirflowClient,
    declaration: InstanceDeclaration,
    dags: Iterable[Dag],
    last: Snapshot | None,
) -> dict[str, AutoPartitions]:
    declared, known = find_auto_partitions(declaration), last.partitions if last else {}
    zoneless = [
        dag
        for dag in dags
        if dag.dag_id in declared and "timezone" not in declared[dag.dag_id].model_fields_set
    ]
    sources = client.fetch_dag_sources(zoneless)
    return {
        dag_id: resolve_schedule(declared[dag_id], schedule, sources.get(dag_id), known.get(dag_id))
        for dag_id, schedule in client.fetch_schedules(declared).items()
    }


def is_selected(dag_id: str, tags: Iterable[str] | None, select: SelectDeclaration) -> bool:
    """Whether a DAG is selected. Tags that are not known (None) match."""

    def matches(globs: list[str]) -> bool:
        return any(fnmatchcase(dag_id, glob) for glob in globs)

    has_tag = select.tags is None or tags is None or not set(select.tags).isdisjoint(tags)
    return matches(select.dag_ids) and has_tag and not matches(select.exclude)
