"""FederatedAirflow: one Airflow instance, as its `defs.yaml` declares it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from dagster.components import DefsStateConfig, ScaffoldRequest
from pydantic import BaseModel
from typing_extensions import override

from federation_defs.airflow.client import build_client
from federation_defs.automation import build_automation_sensor
from federation_defs.checks import build_checks
from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.declaration.templates import find_variables, render_templates
from federation_defs.errors import AirflowError, DeclarationError
from federation_defs.execution import build_execution
from federation_defs.observation import build_observation_sensor
from federation_defs.partitions import Partitioning
from federation_defs.specs import build_specs
from federation_defs.state import Snapshot, fetch_snapshot
from federation_defs.validation import Member, find_problems

_DEFS_YAML = """\
type: {type}

attributes:
  name: {name}
  url: "{{{{ env.{prefix}_AIRFLOW_URL }}}}"
  auth:
    type: password  # Airflow 3; for Airflow 2: basic
    username: "{{{{ env.{prefix}_AIRFLOW_USERNAME }}}}"
    password: "{{{{ env.{prefix}_AIRFLOW_PASSWORD }}}}"
  # select:
  #   dag_ids: ["*"]
  # dags:
  #   a_dag_of_this_instance:
  #     depends_on: [another_instance/a_dag_of_it]
"""


class AirflowScaffolder(dg.Scaffolder):
    """Writes a defs.yaml to start from; the folder's name becomes the instance's."""

    @override
    def scaffold(self, request: ScaffoldRequest) -> None:
        name = request.target_path.name.replace("-", "_")
        request.target_path.mkdir(parents=True, exist_ok=True)
        text = _DEFS_YAML.format(type=request.type_name, name=name, prefix=name.upper())
        (request.target_path / "defs.yaml").write_text(text)


_log = logging.getLogger(__name__)


@dg.scaffold_with(AirflowScaffolder)
class FederatedAirflow(dg.StateBackedComponent):
    """One Airflow instance in the federation: its DAGs as assets, its finished runs observed, and
    those DAGs that depend on others started by Dagster.

    Args:
        declaration: What is declared of the instance, templates rendered.
        source: The file that declares it, for messages.
        account_hint: What a person should check when the instance refuses the sign-in.
    """

    def __init__(
        self,
        declaration: InstanceDeclaration,
        source: str = "FederatedAirflow(...)",
        account_hint: str = "`auth`",
    ) -> None:
        self.declaration = declaration
        self.source = source
        self.client = build_client(declaration, account_hint)
        self._refresh_if_dev = declaration.defs_state.refresh_if_dev
        self._snapshot: Snapshot | None = None
        self._is_snapshot_read = False

    @classmethod
    @override
    def get_model_cls(cls) -> type[BaseModel]:
        return InstanceDeclaration

    @classmethod
    @override
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> FederatedAirflow:
        """The component that a defs.yaml declares.

        Raises:
            DeclarationError: It has no attributes, a template in it can't be rendered, or what
                comes out of one is of the wrong kind.
        """
        folder = context.component_path.file_path
        source = os.path.relpath(folder / "defs.yaml", context.project_root)
        if not isinstance(attributes, InstanceDeclaration):
            raise DeclarationError([f"{source}: write `attributes`: name, url and auth at least."])
        # No warnings: a template stands where a number will be.
        raw = attributes.model_dump(exclude_unset=True, warnings=False)
        rendered = render_templates(raw, context.resolution_context.scope, source)
        declaration = parse_declaration(rendered, source)
        variables = find_variables(raw["auth"])
        component = cls(declaration, source, " and ".join(variables) or f"`auth` in {source}")
        context.component_tree.mark_component_defs_state_key(
            defs_state_key=component.defs_state_config.key, loc=context.component_loc
        )
        return component

    @property
    @override
    def defs_state_config(self) -> DefsStateConfig:
        return DefsStateConfig.from_args(
            self.declaration.defs_state.model_copy(update={"refresh_if_dev": self._refresh_if_dev}),
            default_key=f"FederatedAirflow[{self.declaration.name}]",
        )

    @override
    def write_state_to_path(self, state_path: Path) -> None:
        """Asks the instance what it has, and puts that in the place of what was known before.

        Raises:
            AirflowError: The instance could not be read; what was known before stays.
        """
        previous = Snapshot.from_json(state_path.read_text()) if state_path.exists() else None
        snapshot = fetch_snapshot(self.client, self.declaration.select, previous)
        written = state_path.with_suffix(".new")
        written.write_text(snapshot.to_json())
        written.replace(state_path)

    @override
    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """This instance's part of the federation.

        Raises:
            DeclarationError: The declarations of the federation don't hold together; the error
                names everything that is wrong with any of them.
        """
        components = context.component_tree.get_all_components(of_type=FederatedAirflow)
        members = [
            Member(component.source, component.declaration, component.read_snapshot(context))
            for component in components
        ]
        if problems := find_problems(members):
            raise DeclarationError(problems)
        return self._build_defs(_find_referenced(self.declaration.name, members))

    def read_snapshot(self, context: dg.ComponentLoadContext) -> Snapshot | None:
        """The instance's last known state, refreshed first where Dagster says so (`dagster dev`);
        None if there is none. An instance that can't be read is a warning, and what was known
        before is used."""
        if not self._is_snapshot_read:
            try:
                super().build_defs(context)
            except AirflowError as error:
                self._refresh_if_dev = False
                super().build_defs(context)
                known = f"from {self._snapshot.taken_at}" if self._snapshot else "declared"
                _log.warning("%s Going on with the DAGs %s.", error, known)
            self._is_snapshot_read = True
        return self._snapshot

    @override
    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        """Takes the state in. The definitions are built when that of all instances is known, for a
        dependency is only right if the other instance has the DAG."""
        self._snapshot = Snapshot.from_json(state_path.read_text()) if state_path else None
        return dg.Definitions()

    def _build_defs(self, referenced: set[str]) -> dg.Definitions:
        declaration, client = self.declaration, self.client
        specs = build_specs(declaration, self._snapshot, referenced)
        executable = {dag_id: specs[dag_id] for dag_id in declaration.downstreams}
        rules = {dag_id: declaration.find_rule(dag_id) for dag_id in specs}
        partitionings = {
            dag_id: Partitioning(dag.partitions)
            for dag_id, dag in declaration.dags.items()
            if dag.partitions is not None
        }
        observed = {dag_id: rule for dag_id, rule in rules.items() if dag_id not in executable}
        external = [spec for dag_id, spec in specs.items() if dag_id not in executable]
        sensors: list[dg.SensorDefinition] = [
            build_observation_sensor(
                client, rules, declaration.observe, partitionings=partitionings
            )
        ]
        assets: list[dg.AssetSpec | dg.AssetsDefinition] = [*external]
        if executable:
            keys = [spec.key for spec in executable.values()]
            limit = declaration.limits.max_active_runs
            assets.append(build_execution(client, declaration.downstreams, executable, limit))
            sensors.append(build_automation_sensor(declaration.name, keys))
        checks = [build_checks(client, observed)] if observed else []
        return dg.Definitions(assets=assets, asset_checks=checks, sensors=sensors)


def _find_referenced(name: str, members: Iterable[Member]) -> set[str]:
    """The DAGs of an instance that any DAG of the federation depends on."""
    return {
        upstream
        for member in members
        for dag in member.declaration.dags.values()
        for instance, upstream in dag.upstreams
        if instance == name
    }


def load_federation(path_within_project: Path) -> dg.Definitions:
    """Everything in a project's defs folder, for run workers that start quickly.

    What `dagster.load_from_defs_folder` does, but for two things, because every trigger starts a
    run worker, and its start is the user's waiting time:

    - `load_from_defs_folder` imports all component packages that are installed, dagster-airlift
      among them, to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - A run waits for its DAGs in one process. The default executor would start one more per step:
      3 s later, 150 MB larger, and only as many at a time as there are cores.

    Args:
        path_within_project: The project's root, or anything in it.
    """
    with warnings.catch_warnings():
        # As `load_from_defs_folder` does: they tell of Dagster's own use of its beta features.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        tree = dg.ComponentTree.for_project(path_within_project)
        return dg.Definitions.merge(
            tree.build_defs(tree.defs_module_path),
            dg.Definitions(executor=dg.in_process_executor, component_tree=tree),
        )
