"""One instance, as it is declared: where it is, which DAGs, and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dagster.components import DefsStateConfigArgs
from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from federation_defs.declaration.connection import AuthDeclaration, HttpDeclaration, TlsDeclaration
from federation_defs.declaration.dag import DagDeclaration, SuccessDeclaration
from federation_defs.declaration.fields import Count, Declaration, Duration, Number
from federation_defs.declaration.templates import is_template
from federation_defs.errors import DeclarationError


def _check_url(url: str) -> str:
    if is_template(url):
        return url
    if "@" in url:
        raise ValueError("take user name and password out of it: they belong into `auth`")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises on one that is no number
    except ValueError:
        # Its own words quote what may be a secret.
        raise ValueError("write a web address: https://airflow.example.com:8080") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a web address: https://airflow.example.com")
    if parts.query or parts.fragment:
        raise ValueError("end it with the path: nothing after a ? or # is an address of an API")
    return url


def _check_state(state: DefsStateConfigArgs) -> DefsStateConfigArgs:
    if state.management_type.value == "LEGACY_CODE_SERVER_SNAPSHOTS":
        raise ValueError(
            "LEGACY_CODE_SERVER_SNAPSHOTS keeps nothing for when the instance is down; take "
            "LOCAL_FILESYSTEM or VERSIONED_STATE_STORAGE"
        )
    return state


class SelectDeclaration(Declaration):
    """Which DAGs become assets; all of them unless set."""

    dag_ids: list[str] = Field(
        default=["*"], description="Globs; a DAG is selected if one of them matches its id."
    )
    tags: list[str] | None = Field(
        default=None, description="If set, a DAG needs at least one of these Airflow tags."
    )
    exclude: list[str] = Field(
        default=[], description="Globs; a DAG that one of them matches is left out."
    )


class ObserveDeclaration(Declaration):
    """How the instance is watched."""

    interval: Number = Field(
        default=2,
        description="Seconds from one look to the next, each a request. Dagster's sensor daemon "
        "takes a turn every 5 seconds at best; with less, there are several looks in a turn.",
    )
    overlap: Duration = Field(
        default=120.0,
        description="By how much a look reaches back before the one before it, for rows that "
        "appear late and clocks that differ. As 120s or 5m.",
    )
    lookback: Duration = Field(
        default=7 * 86400.0,
        description="How long an outage may be for all that ended meanwhile to be reported. What "
        "a longer one hides is reported as a gap. As 12h or 7d.",
    )
    lookback_on_first_start: Duration = Field(
        default=3600.0,
        description="How far the very first look at an instance reaches back, as 30m or 1h.",
    )


class LimitsDeclaration(Declaration):
    """How much of the instance the federation takes."""

    max_active_runs: Count | None = Field(
        default=None,
        description="DAG runs that go on at a time by our doing, over all Dagster runs; the others "
        "wait for their turn, those with the higher tag `dagster/priority` first. No limit unless "
        "set here or for the concurrency pool in Dagster.",
    )


class InstanceDeclaration(Declaration):
    """One Airflow instance, and what of it is federated."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,50}$")] = Field(
        description="The first part of every asset key; unique in the code location. Letters, "
        "digits and underscores, 50 at most."
    )
    url: Annotated[str, AfterValidator(_check_url)] = Field(
        description="The web address of its web server or API server, path prefix included.",
        examples=["{{ env.METRICS_AIRFLOW_URL }}"],
    )
    auth: AuthDeclaration = Field(description="How to sign in.")
    api: Literal["auto", "v1", "v2"] = Field(
        default="auto", description="The REST API: v1 (2.x), v2 (3.x), or ask the server."
    )
    tls: TlsDeclaration = TlsDeclaration()
    http: HttpDeclaration = HttpDeclaration()
    select: SelectDeclaration = SelectDeclaration()
    observe: ObserveDeclaration = ObserveDeclaration()
    limits: LimitsDeclaration = LimitsDeclaration()
    dags: dict[str, DagDeclaration] = Field(default={}, description="What is declared, by DAG id.")
    defs_state: Annotated[DefsStateConfigArgs, AfterValidator(_check_state)] = Field(
        default=DefsStateConfigArgs.local_filesystem(),
        description="Where the last known DAGs are kept, as for every state-backed component.",
    )

    @property
    def downstreams(self) -> dict[str, DagDeclaration]:
        """The DAGs that depend on something, and so are run by Dagster."""
        return {dag_id: dag for dag_id, dag in self.dags.items() if dag.depends_on}

    def find_rule(self, dag_id: str) -> SuccessDeclaration | None:
        """What decides on the success of a DAG's runs; None if their own state does."""
        dag = self.dags.get(dag_id)
        return dag.success_when if dag else None


def parse_declaration(values: Mapping[str, Any], source: str) -> InstanceDeclaration:
    """The declaration of one instance, its templates rendered.

    Args:
        source: The declaring file, for messages.

    Raises:
        DeclarationError: Everything that is wrong with it, by key.
    """
    try:
        return InstanceDeclaration.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{source}: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise DeclarationError(problems) from None  # its own text holds what was written
