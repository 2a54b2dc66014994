"""How an instance is reached: signing in, TLS, and how hard it may be asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, SecretStr, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from federation_defs.declaration.fields import Count, Declaration, Duration, Switch


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


class TokenAuthDeclaration(Declaration):
    """A bearer token that somebody else made: Astro's API tokens, or what a vault hands out.

    Exactly one of the three says where it is.
    """

    type: Literal["token"]
    token: SecretStr | None = Field(default=None, description="The token itself.")
    token_file: str | None = Field(
        default=None, description="A file that holds it; read again whenever it changes."
    )
    token_command: list[str] | None = Field(
        default=None,
        min_length=1,
        repr=False,  # an argument may be a secret
        description="A program and its arguments, which prints it; run again before the token "
        "ends, and when it is refused. No shell reads it.",
    )

    @model_validator(mode="after")
    def _need_one_source(self) -> TokenAuthDeclaration:
        given = [self.token, self.token_file, self.token_command]
        if sum(source is not None for source in given) != 1:
            raise ValueError("write exactly one of token, token_file and token_command")
        return self


class MwaaAuthDeclaration(Declaration):
    """Amazon MWAA, by IAM: needs `pip install 'federation-defs[mwaa]'`."""

    type: Literal["mwaa"]
    environment: str = Field(description="The name of the MWAA environment.")
    region: str | None = Field(default=None, description="AWS region; else as boto3 finds it.")
    profile: str | None = Field(default=None, description="AWS profile; else as boto3 finds it.")


class ComposerAuthDeclaration(Declaration):
    """Cloud Composer, by a Google account: needs `pip install 'federation-defs[composer]'`."""

    type: Literal["composer"]
    credentials_file: str | None = Field(
        default=None,
        description="A service account's key; else the application default credentials.",
    )


class NoAuthDeclaration(Declaration):
    """Nothing is sent: for an Airflow that lets everybody in, or one behind a proxy that signs
    in by itself."""

    type: Literal["none"]


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
    BasicAuthDeclaration
    | PasswordAuthDeclaration
    | TokenAuthDeclaration
    | MwaaAuthDeclaration
    | ComposerAuthDeclaration
    | NoAuthDeclaration,
    Field(discriminator="type"),
    _ByType(),
]


class TlsDeclaration(Declaration):
    """How the instance proves who it is, and we do. Trusted are the system's authorities, those
    that requests brings, and whatever is declared here."""

    verify: Switch = Field(
        default=True,
        description="False takes anybody for the instance, who then reads the credentials; every "
        "load warns of it.",
    )
    ca_bundle: str | None = Field(
        default=None, description="A PEM file of the authorities to trust besides the system's."
    )
    client_cert: str | None = Field(
        default=None, description="A PEM file: our own certificate, with its key unless apart."
    )
    client_key: str | None = Field(default=None, description="A PEM file: the certificate's key.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_a_key_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("client_key") and not value.get("client_cert"):
            raise ValueError("client_key is the key of client_cert: write that too")
        return value


class HttpDeclaration(Declaration):
    """How long an answer may take, and how hard the instance may be asked, by each process."""

    connect_timeout: Duration = Field(default=5.0, description="For a connection to stand.")
    read_timeout: Duration = Field(default=30.0, description="For the next byte of an answer.")
    answer_timeout: Duration = Field(
        default=60.0, description="For an answer as a whole, however it trickles in."
    )
    max_connections: Count = Field(default=8, description="At a time.")
    max_requests_per_minute: Count = Field(
        default=300,
        description="In any minute; what comes too early waits. A quarter of them may come at "
        "once.",
    )
