"""One Airflow instance: its address, its DAGs, and their dependencies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dagster.components import DefsStateConfigArgs
from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from federation_defs.declaration.connection import AuthDeclaration, HttpDeclaration, TlsDeclaration
from federation_defs.declaration.dag import DagDeclaration
from federation_defs.declaration.fields import Count, Declaration, Duration, Interval, Templated
from federation_defs.errors import DeclarationError


def check_url(url: str) -> str:
    """Return a web address, or refuse it. The message does not quote it: it may hold a secret."""
    url = url.strip()
    if " " in url or not url.isprintable():
        raise ValueError("remove white space and control characters")
    if "@" in url:
        raise ValueError("remove user name and password: they belong in `auth`")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # fails for a bad label
        is_address = parts.scheme in ("http", "https") and host and parts.port != 0
    except ValueError:  # a bad host or port; the message may quote a secret
        is_address = False
    if not is_address:
        raise ValueError("write a web address: https://airflow.example.com:8080")
    if "?" in url or "#" in url:
        raise ValueError("end it with the path: an API's address has no ? and no #")
    return url


def _check_state(state: DefsStateConfigArgs) -> DefsStateConfigArgs:
    if (kind := state.management_type.value) == "LEGACY_CODE_SERVER_SNAPSHOTS":
        remedy = "use LOCAL_FILESYSTEM or VERSIONED_STATE_STORAGE"
        raise ValueError(f"{kind} keeps no state for when the instance is down; {remedy}")
    return state


class SelectDeclaration(Declaration):
    """Which DAGs become assets; all unless set."""

    dag_ids: list[str] = Field(default=["*"], description="Globs of the DAG ids to select.")
    tags: list[str] | None = Field(
        default=None, description="If set, a DAG needs at least one of these Airflow tags."
    )
    exclude: list[str] = Field(default=[], description="Globs of the DAG ids to leave out.")


class ObserveDeclaration(Declaration):
    """How to poll the instance for finished runs."""

    interval: Interval = Field(
        default=2.0,
        description="The time between polls, of one request each, as 5s or 1m. Dagster's sensor "
        "daemon starts a tick every 5 seconds at best; with a shorter interval, a tick polls "
        "several times, and at times 5 seconds pass between two polls.",
    )
    overlap: Duration = Field(
        default=120.0,
        description="How far a poll reaches back before the previous one, for rows that appear "
        "late and clocks that differ. As 120s or 5m.",
    )
    lookback: Duration = Field(
        default=7 * 86400.0,
        description="The longest outage after which all runs that ended meanwhile are reported. A "
        "longer one is reported as a gap. As 12h or 7d.",
    )
    lookback_on_first_start: Duration = Field(
        default=3600.0, description="How far the very first poll reaches back, as 30m or 1h."
    )


class LimitsDeclaration(Declaration):
    """Limits on what the federation runs in the instance."""

    max_active_runs: Count | None = Field(
        default=None,
        description="DAG runs that Dagster may have queued or running in the instance at a time, "
        "over all Dagster runs; the others wait for their turn, in no order. Airflow is asked "
        "before each trigger, so triggers in the same second may exceed it. No limit unless set.",
    )


_UNDECLARED = DagDeclaration()

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,50}$")]


class InstanceDeclaration(Declaration):
    """One Airflow instance of the federation."""

    name: _Name = Field(
        description="The first part of every asset key; unique in the deployment. Letters, "
        "digits and underscores, 50 at most."
    )
    url: Templated[Annotated[str, AfterValidator(check_url)]] = Field(
        description="The web address of its web server or API server, path prefix included.",
        examples=["{{ env.METRICS_AIRFLOW_URL }}"],
    )
    auth: AuthDeclaration = Field(description="How to sign in.")
    api: Literal["auto", "v1", "v2"] = Field(
        default="auto", description="The REST API: v1 (2.x), v2 (3.x), or auto to ask the server."
    )
    environment: Templated[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        default=None,
        description="A word of your own, such as production. Dependencies between instances of "
        "different environments are refused unless they set `across_environments: true`.",
    )
    tls: TlsDeclaration = TlsDeclaration()
    http: HttpDeclaration = HttpDeclaration()
    select: SelectDeclaration = SelectDeclaration()
    observe: ObserveDeclaration = ObserveDeclaration()
    limits: LimitsDeclaration = LimitsDeclaration()
    elsewhere: list[_Name] = Field(
        default=[],
        description="Instances that other code locations declare, and that DAGs of this instance "
        "depend on.",
        examples=[["finance"]],
    )
    dags: dict[str, DagDeclaration] = Field(default={}, description="Declarations by DAG id.")
    defs_state: Annotated[DefsStateConfigArgs, AfterValidator(_check_state)] = Field(
        default=DefsStateConfigArgs.local_filesystem(),
        description="Where to keep the last known DAGs, as for every state-backed component.",
    )

    @model_validator(mode="after")
    def _require_dates_in_airflow_2(self) -> InstanceDeclaration:
        dags = self.dags.items() if self.api == "v1" else ()
        wrong = [dag_id for dag_id, dag in dags if dag.trigger.logical_date == "none"]
        if wrong:
            keys = ", ".join(f"dags.{dag_id}.trigger.logical_date" for dag_id in wrong)
            raise ValueError(
                f"{keys}: in Airflow 2 (`api: v1`) every run has a logical date; remove the key"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _redact_inputs(
        cls, value: Any, validate: ModelWrapValidatorHandler[InstanceDeclaration]
    ) -> InstanceDeclaration:
        """Remove the declared values from errors. Dagster (1.13) builds its own error from ours,
        with the line in the file, and shows the values in it."""
        try:
            return validate(value)
        except ValidationError as error:
            redacted = [
                InitErrorDetails(
                    type=problem["type"],
                    loc=problem["loc"],
                    input="***",
                    ctx=problem.get("ctx", {}),
                )
                for problem in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, redacted) from None

    @property
    def state_key(self) -> str:
        """The key of the instance's state; unique in the deployment."""
        return self.defs_state.key or f"FederatedAirflow[{self.name}]"

    @cached_property
    def downstreams(self) -> dict[str, DagDeclaration]:
        """The DAGs that depend on others, and are therefore run by Dagster, by DAG id."""
        return {dag_id: dag for dag_id, dag in self.dags.items() if dag.depends_on}

    def find_dag(self, dag_id: str) -> DagDeclaration:
        """Return the declaration of a DAG, or the defaults if it is not declared."""
        return self.dags.get(dag_id, _UNDECLARED)


def find_upstream(
    instances: Mapping[str, InstanceDeclaration], upstream: tuple[str, str] | None
) -> DagDeclaration | None:
    """Return the declaration of an upstream DAG. None if another code location declares its
    instance, or if the upstream is an asset.

    Args:
        instances: The declared instances, by name.
        upstream: The instance and the DAG id; None for an asset.
    """
    known = instances.get(upstream[0]) if upstream else None
    return known.find_dag(upstream[1]) if known and upstream else None


def parse_declaration(
    values: InstanceDeclaration | Mapping[str, Any], source: str
) -> InstanceDeclaration:
    """Return the declaration of one instance.

    Args:
        source: The declaring file, for messages.

    Raises:
        DeclarationError: The declaration is wrong. Names all problems, by key.
    """
    try:
        return InstanceDeclaration.model_validate(values)
    except ValidationError as error:
        problems: list[str] = []
        for problem in error.errors(include_input=False, include_url=False):
            where = [source, ".".join(map(str, problem["loc"]))]
            what = problem["msg"].removeprefix("Value error, ")
            problems.append(": ".join(filter(None, [*where, what])))
        raise DeclarationError(problems) from None  # pydantic's message may hold secrets
