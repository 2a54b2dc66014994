"""The component FederatedAirflow: one Airflow instance, declared in a `defs.yaml`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from functools import cached_property, partial
from pathlib import Path

import dagster as dg
from dagster.components import DefsStateConfig
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import override

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.declaration.fields import (
    find_unset_variables,
    find_variables,
    render_templates,
)
from federation_defs.errors import AirflowError, DeclarationError
from federation_defs.instance_defs import build_assets, build_instance_defs
from federation_defs.scaffolder import AirflowScaffolder
from federation_defs.schedules import (
    describe_auto,
    find_auto_partitions,
    find_unknown_partitions,
    resolve_declaration,
)
from federation_defs.specs import build_specs
from federation_defs.state import Snapshot, fetch_snapshot, read_snapshot, write_snapshot
from federation_defs.threads import run_in_threads
from federation_defs.validation import (
    Member,
    find_absent_dags,
    find_dateless_triggers,
    find_deep_chains,
    find_named_dags,
    find_problems,
    find_wrong_windows,
)

_log = logging.getLogger(__name__)

# For keys whose environment variables are not set. No request is sent with them.
_PLACEHOLDERS = {"url": "https://unset.invalid", "auth": {"type": "none"}}
_STRICT_VARIABLE = "FEDERATION_STRICT"
_MAX_FETCHES = 32  # snapshots at a time


@dg.scaffold_with(AirflowScaffolder)
class FederatedAirflow(dg.StateBackedComponent):
    """One Airflow instance of the federation. Its DAGs are assets, its finished runs are observed,
    and Dagster runs those of its DAGs that depend on others.

    Args:
        source: The file that declares it, for messages.
        account_hint: What to check if the instance refuses the sign-in, for messages.
        unset: The environment variables of `url` and `auth` that are not set. Without them the
            instance is loaded, and each request to it fails.
    """

    def __init__(
        self,
        declaration: InstanceDeclaration,
        source: str = "FederatedAirflow(...)",
        account_hint: str = "`auth`",
        unset: Sequence[str] = (),
    ) -> None:
        self.declaration = declaration
        self.member = Member(source, declaration)
        self._account_hint, self._unset = account_hint, unset
        self.federation: Sequence[FederatedAirflow] = ()  # all components, once a load has begun
        self.named: Mapping[str, Sequence[str]] = {}  # its declared and depended-on DAGs, and where
        self.needed: Set[str] | None = None  # in a run worker, the DAGs that its runs need
        self.context: dg.ComponentLoadContext | None = None  # None if built by hand
        self.is_loaded = False
        self.fetched: list[Snapshot | Exception] = []  # not written yet; at most one
        self.snapshot: Snapshot | None = None
        self.state_error = ""  # why the state can't be read
        self.resolved = declaration  # with all partitions in full, once the state was read
        self.is_resolved = False  # in a run worker: the state was read, if partitions need that
        self.undecided: Mapping[str, Sequence[str]] = {}  # why nothing starts DAGs, by DAG id
        self._defs_state = declaration.defs_state

    @cached_property
    def client(self) -> AirflowClient:
        return build_client(self.declaration, self._account_hint, unset=self._unset)

    @classmethod
    @override
    def get_model_cls(cls) -> type[BaseModel]:
        return InstanceDeclaration

    @classmethod
    @override
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> FederatedAirflow:
        """Return the component that a `defs.yaml`, or a Python file, declares.

        Raises:
            DeclarationError: A key is missing or wrong, or a template can't be rendered.
        """
        path = context.component_path.file_path
        is_python = path.suffix == ".py"
        source = os.path.relpath(path if is_python else path / "defs.yaml", context.project_root)
        if not isinstance(attributes, InstanceDeclaration):
            raise DeclarationError([f"{source}: write `attributes`: name, url and auth at least."])
        if is_python:
            source += f" ({attributes.name})"
        # Without warnings about numbers that are templates.
        raw = attributes.model_dump(exclude_unset=True, warnings=False)
        unset: list[str] = []
        for key, placeholder in () if _is_strict() else _PLACEHOLDERS.items():
            if names := find_unset_variables(raw[key]):
                unset += names
                raw[key] = placeholder
        account_hint = " and ".join(unset or find_variables(raw["auth"])) or f"`auth` in {source}"
        rendered = render_templates(raw, context.resolution_context.scope, source)
        component = cls(parse_declaration(rendered, source), source, account_hint, unset)
        component.context = context
        context.component_tree.mark_component_defs_state_key(
            defs_state_key=component.defs_state_config.key, loc=context.component_loc
        )
        return component

    @property
    @override
    def defs_state_config(self) -> DefsStateConfig:
        return DefsStateConfig.from_args(self._defs_state, default_key=self.declaration.state_key)

    @property
    def has_versioned_state(self) -> bool:
        """Whether a refresh can store a state while the code location runs."""
        return self._defs_state.management_type.value == "VERSIONED_STATE_STORAGE"

    @override
    def write_state_to_path(self, state_path: Path) -> None:
        """Fetch a snapshot of the instance and write it to the file.

        Raises:
            AirflowError: The instance could not be read; the file is unchanged.
        """
        if not self.fetched:
            # A load refreshes one component after the other (dagster 1.13), which would add up the
            # time-outs of instances that hang. So the first one fetches for all.
            others = [
                component
                for component in self.federation
                if not component.is_loaded and component.defs_state_config.refresh_if_dev
            ]
            # Only this thread has the context in which Dagster finds states.
            fetches = [partial(each.fetch, each.read_last()) for each in {self, *others}]
            run_in_threads(fetches, _MAX_FETCHES)
        fetched = self.fetched.pop()
        if isinstance(fetched, Exception):
            raise fetched
        write_snapshot(fetched, state_path)

    def read_last(self) -> Snapshot | None:
        """Return the state that a refresh replaces; None if the refresh keeps nothing of it."""
        if self.context is None or not find_auto_partitions(self.declaration):
            return None
        self.read_state(self.context)
        return self.snapshot

    def fetch(self, last: Snapshot | None) -> None:
        """Fetch a snapshot into `fetched`, to be written later. Keep an error there instead."""
        try:
            self.fetched = [fetch_snapshot(self.client, self.declaration, last)]
        except Exception as error:  # noqa: BLE001 - of this instance, and must not stop others
            self.fetched = [error]

    @override
    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of this instance, from its declaration and its state.

        DAGs that are declared or depended on are always assets. Each one that the instance does not
        have causes a warning and a failed check. What its version can't do, and what is wrong with
        partitions, causes a warning.

        If Dagster refreshes the state first (under `dagster dev`) and that fails, log a warning and
        use the last state.

        Raises:
            DeclarationError: The declarations contradict each other. Or there is one of these
                warnings, and FEDERATION_STRICT is true. Names all problems.
            AirflowError: A refresh failed, and FEDERATION_STRICT is true.
            Exception: A state can't be read or written, and FEDERATION_STRICT is true.
        """
        if self.needed is not None:
            if not self.needed:
                return dg.Definitions()
            specs = self.build_specs_for_run(self.needed, context)
            return dg.Definitions(assets=build_assets(self.client, self.resolved, specs))
        self._join_federation(context)
        name, snapshot = self.declaration.name, self.snapshot
        absent = find_absent_dags(name, snapshot, self.named)
        problems = [
            *absent.values(),
            *find_dateless_triggers(self.member, snapshot),
            *self._find_partition_problems(),
        ]
        if problems and _is_strict():
            raise DeclarationError(problems)
        for problem in problems:
            _log.warning("%s", problem)
        specs = build_specs(
            self.resolved, snapshot, self.named.keys(), self._instances, self.undecided
        )
        return build_instance_defs(
            self.client,
            self.resolved,
            specs,
            absent,
            self._instances,
            self.find_problem,
            self.find_partition_problem,
            self.undecided,
            " ".join(each.state_error for each in self.federation if each.state_error),
        )

    def build_specs_for_run(
        self, dag_ids: Collection[str], context: dg.ComponentLoadContext | None
    ) -> dict[str, dg.AssetSpec]:
        """Return the asset specs of some DAGs as a run worker needs them: from the declarations,
        and from states where partitions of the DAGs, or of their upstreams, are `auto`."""
        dags = map(self.declaration.find_dag, dag_ids)
        involved = {self.member.name, *(name for dag in dags for name, _ in dag.upstreams)}
        for component in self.federation or [self]:
            if component.member.name in involved and not component.is_resolved:
                component.is_resolved = True
                if context is not None and find_auto_partitions(component.declaration):
                    component.read_state(context)
        return build_specs(self.resolved, None, dag_ids, self._instances, is_for_run=True)

    def _join_federation(self, context: dg.ComponentLoadContext) -> None:
        """Find the other components, and validate the declarations of all, once per load."""
        if self.federation:
            return
        components = context.component_tree.get_all_components(of_type=FederatedAirflow) or [self]
        members = [component.member for component in components]
        if problems := find_problems(members):
            raise DeclarationError(problems)
        for warning in find_deep_chains(members):
            _log.warning("%s", warning)
        named = find_named_dags(members)
        for component in components:
            component.federation = components
            component.named = named.get(component.declaration.name, {})
        # Partitions may be stored in the states only, and those of other instances are needed, too.
        for component in components:
            component.load_state(context)
        if any(find_auto_partitions(member.declaration) for member in members):
            resolved = [Member(each.member.source, each.resolved) for each in components]
            for component, member in zip(components, resolved, strict=True):
                unknown = find_unknown_partitions(component.resolved, self._instances)
                component.undecided = {**find_wrong_windows(member, resolved), **unknown}

    def load_state(self, context: dg.ComponentLoadContext) -> None:
        """Read the state. Under `dagster dev`, Dagster refreshes it first. If that fails, log a
        warning and use the last state, unless FEDERATION_STRICT is true."""
        try:
            super().build_defs(context)
        except Exception as error:  # of any storage; it is a ValueError if a version was lost
            if _is_strict():
                raise
            reason = str(error)
            if not isinstance(error, AirflowError):
                name = self.member.name
                reason = f"The state of Airflow '{name}' can't be read or written: {error}."
            self.read_state(context)
            known = f"DAGs as of {self.snapshot.taken_at}" if self.snapshot else "declared DAGs"
            _log.warning("%s Using the %s.", reason, known)
        self.is_loaded = True

    def read_state(self, context: dg.ComponentLoadContext) -> None:
        """Read the state without a refresh. If the storage fails, log a warning and have none."""
        declared = self._defs_state
        self._defs_state = declared.model_copy(update={"refresh_if_dev": False})
        try:
            super().build_defs(context)
        except Exception as error:  # noqa: BLE001 - as in `load_state`
            self.build_defs_from_state(context, None)
            self.state_error = f"The state of Airflow '{self.member.name}' can't be read: {error}."
            _log.warning("%s", self.state_error)
        finally:
            self._defs_state = declared

    @override
    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        """Keep the state for `build_defs`, which needs the states of all instances.

        Dagster calls this while it builds definitions, and hands out a state in no other way.
        """
        self.snapshot, self.state_error = read_snapshot(state_path), ""
        known = self.snapshot.partitions if self.snapshot else {}
        self.resolved = resolve_declaration(self.declaration, known)
        return dg.Definitions()

    @property
    def _instances(self) -> dict[str, InstanceDeclaration]:
        return {component.declaration.name: component.resolved for component in self.federation}

    def find_problem(self, airflow: str, dag_id: str) -> str | None:
        """Return why a DAG of any instance can't run by the last refresh, as the end of a
        sentence; None if nothing is known to be wrong with it."""
        for component in self.federation:
            snapshot = component.snapshot
            if component.declaration.name == airflow and snapshot is not None:
                problem = snapshot.describe_problem(dag_id)
                return problem and f"{problem} (as of {snapshot.taken_at})"
        return None

    def find_partition_problem(self, dag_id: str) -> str | None:
        """Return what is wrong with the partitions of a DAG or of its upstreams by the last
        refresh, as sentences; None if nothing is known to be wrong with them."""
        known = self.snapshot.partitions if self.snapshot else {}
        problem = describe_auto(self.declaration.find_dag(dag_id).partitions, known.get(dag_id))
        problems = [problem] if problem else []
        if dag_id in self.undecided:
            problems += (f"Upstream, {each}." for each in self.undecided[dag_id])
            problems.append("Until that is settled, its upstreams do not start it.")
        return " ".join(problems) or None

    def _find_partition_problems(self) -> Iterator[str]:
        """Find what is wrong with partitions by the instance's state; nothing without a state."""
        dag_ids = {*find_auto_partitions(self.declaration), *self.undecided}
        for dag_id in sorted(dag_ids) if self.snapshot else ():
            if problem := self.find_partition_problem(dag_id):
                yield f"{self.member.source}: dags.{dag_id}.partitions: {problem}"


def _is_strict() -> bool:
    """Whether what is wrong in an Airflow is an error at load, as in CI, instead of a warning.

    Raises:
        DeclarationError: FEDERATION_STRICT is neither true nor false.
    """
    value = os.environ.get(_STRICT_VARIABLE, "").strip() or "false"
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise DeclarationError([f"{_STRICT_VARIABLE} is '{value}': write true or false."]) from None
