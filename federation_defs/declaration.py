"""What can be declared: the types behind `defs.yaml`.

Text and numbers may be templates (`"{{ env.METRICS_AIRFLOW_URL }}"`), rendered as text and then
read as the key's type. Unknown keys are refused by name, however deep.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dagster.components import DefsStateConfigArgs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from federation_defs.errors import DeclarationError
from federation_defs.templates import is_template

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Templated:
    """Marks a field that is not text: besides its own type it takes a template, as it stands.

    (Dagster's own way to admit templates makes every field a union with `str`, which turns a typo
    two levels down into "not valid under any of the given schemas".)
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def keep_template(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if is_template(value) else validate(value)

        return core_schema.no_info_wrap_validator_function(keep_template, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        own = handler(schema)
        return {"anyOf": [own, {"type": "string", "pattern": r"\{\{"}]}


def _parse_duration(value: Any) -> Any:
    """Seconds out of "90", 90, "30s", "5m", "24h" or "7d"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
        if match is None:
            raise ValueError("write a number and a unit: 30s, 5m, 24h, 7d")
        return float(match[1]) * _UNITS_S[match[2] or "s"]
    return value


def _check_url(url: str) -> str:
    if is_template(url):
        return url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a web address: https://airflow.example.com")
    if "@" in parts.netloc:
        raise ValueError("take user name and password out of it: they belong into `auth`")
    return url


def _check_state(state: DefsStateConfigArgs) -> DefsStateConfigArgs:
    if state.management_type.value == "LEGACY_CODE_SERVER_SNAPSHOTS":
        raise ValueError(
            "LEGACY_CODE_SERVER_SNAPSHOTS keeps nothing for when the instance is down; take "
            "LOCAL_FILESYSTEM or VERSIONED_STATE_STORAGE"
        )
    return state


Duration = Annotated[
    float,
    Field(gt=0, json_schema_extra={"type": ["number", "string"]}),
    BeforeValidator(_parse_duration),
    _Templated(),
]
Number = Annotated[float, Field(gt=0), _Templated()]


class Declaration(BaseModel):
    """What all declared things have in common: unknown keys are errors, values don't change."""

    # An input in an error would show passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            problems = [
                f"unknown key '{key}'{suggest(str(key), cls.model_fields)}"
                for key in value
                if key not in cls.model_fields
            ]
            if problems:
                raise ValueError("; ".join(problems))
        return value


class BasicAuthDeclaration(Declaration):
    """Name and password on every request: Airflow 2 with the `basic_auth` back end."""

    type: Literal["basic"]
    username: str
    password: SecretStr


class PasswordAuthDeclaration(Declaration):
    """A token for name and password: Airflow 3, whichever auth manager."""

    type: Literal["password"]
    username: str
    password: SecretStr


class _ByType:
    """Writes a union told apart by `type` into the schema as if/then, so that what checks YAML in
    an editor names the wrong key, and not all the types that don't fit."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        refs: dict[str, str] = handler(schema)["discriminator"]["mapping"]
        return {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": list(refs)}},
            "allOf": [
                {"if": {"properties": {"type": {"const": kind}}}, "then": {"$ref": ref}}
                for kind, ref in refs.items()
            ],
        }


AuthDeclaration = Annotated[
    BasicAuthDeclaration | PasswordAuthDeclaration, Field(discriminator="type"), _ByType()
]


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
        default=5,
        description="Seconds from one look to the next. Dagster's sensor daemon itself loops "
        "every 5 seconds at best.",
    )


class TriggerDeclaration(Declaration):
    """How a DAG with dependencies is run."""

    timeout: Duration = Field(
        default=86400.0,
        description="For the DAG run, as 30s, 5m, 24h or 7d. Past it the wait ends with an "
        "error, and the DAG run goes on.",
    )


class DagDeclaration(Declaration):
    """What is declared of one DAG."""

    depends_on: list[Annotated[str, StringConstraints(pattern=r"^[^/\s]+/\S+$")]] = Field(
        default=[],
        description="Upstream DAGs as instance/dag_id: a success of any of them starts this DAG.",
        examples=[["warehouse/load_customers"]],
    )
    trigger: TriggerDeclaration = TriggerDeclaration()

    @property
    def upstreams(self) -> list[tuple[str, str]]:
        """The upstream DAGs, each as (instance, DAG id)."""
        pairs = (upstream.split("/", 1) for upstream in self.depends_on)
        return [(instance, dag_id) for instance, dag_id in pairs]


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
    select: SelectDeclaration = SelectDeclaration()
    observe: ObserveDeclaration = ObserveDeclaration()
    dags: dict[str, DagDeclaration] = Field(default={}, description="What is declared, by DAG id.")
    defs_state: Annotated[DefsStateConfigArgs, AfterValidator(_check_state)] = Field(
        default=DefsStateConfigArgs.local_filesystem(),
        description="Where the last known DAGs are kept, as for every state-backed component.",
    )

    @property
    def downstreams(self) -> dict[str, DagDeclaration]:
        """The DAGs that depend on something, and so are run by Dagster."""
        return {dag_id: dag for dag_id, dag in self.dags.items() if dag.depends_on}


def suggest(name: str, known: Iterable[str]) -> str:
    """The nearest right name as the end of a sentence; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


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
