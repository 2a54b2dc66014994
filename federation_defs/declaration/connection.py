"""How to connect to an instance: sign-in, TLS, time-outs and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator

from federation_defs.declaration.fields import Count, Declaration, Duration, Switch


class BasicAuthDeclaration(Declaration):
    """User name and password with every request: Airflow 2 with the `basic_auth` back end."""

    type: Literal["basic"]
    username: str
    password: SecretStr


class PasswordAuthDeclaration(Declaration):
    """A token in exchange for user name and password: Airflow 3, with any auth manager."""

    type: Literal["password"]
    username: str
    password: SecretStr


class TokenAuthDeclaration(Declaration):
    """A bearer token from elsewhere, such as an Astro API token or a vault. Set exactly one key."""

    type: Literal["token"]
    token: SecretStr | None = Field(default=None, description="The token itself.")
    token_file: str | None = Field(
        default=None, description="A file that holds the token; read again when it changes."
    )
    token_command: list[str] | None = Field(
        default=None,
        min_length=1,
        repr=False,  # an argument may be a secret
        description="A program that prints the token, and its arguments; run again before the "
        "token expires and when it is refused. No shell is involved.",
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> TokenAuthDeclaration:
        given = [self.token, self.token_file, self.token_command]
        if sum(source is not None for source in given) != 1:
            raise ValueError("write exactly one of token, token_file and token_command")
        return self


class MwaaAuthDeclaration(Declaration):
    """Amazon MWAA, through IAM. Needs the extra `mwaa` of federation-defs."""

    type: Literal["mwaa"]
    environment: str = Field(description="The name of the MWAA environment.")
    region: str | None = Field(default=None, description="AWS region; else boto3's default.")
    profile: str | None = Field(default=None, description="AWS profile; else boto3's default.")


class ComposerAuthDeclaration(Declaration):
    """Cloud Composer, with a Google account. Needs the extra `composer` of federation-defs."""

    type: Literal["composer"]
    credentials_file: str | None = Field(
        default=None, description="A service account key; else the application default credentials."
    )


class NoAuthDeclaration(Declaration):
    """No credentials: for an Airflow that is open to everyone, or a proxy that signs in."""

    type: Literal["none"]


def _write_as_if_then(schema: dict[str, Any]) -> None:
    """Rewrite the JSON schema of a union by `type` as if/then. An editor then names the wrong key
    instead of every type that does not match."""
    refs = schema.pop("discriminator")["mapping"]
    del schema["oneOf"]
    schema |= {
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
    Field(discriminator="type", json_schema_extra=_write_as_if_then),
]


class TlsDeclaration(Declaration):
    """Certificates of both sides. Trusted authorities are those of the system, those of requests
    (certifi), and `ca_bundle`."""

    verify: Switch = Field(
        default=True,
        description="If false, certificates are not verified, and anyone in between can read the "
        "credentials; a warning is logged at every load.",
    )
    ca_bundle: str | None = Field(default=None, description="A PEM file of further authorities.")
    client_cert: str | None = Field(
        default=None,
        description="A PEM file with the client certificate, and its key unless in `client_key`.",
    )
    client_key: str | None = Field(default=None, description="A PEM file: the certificate's key.")

    @model_validator(mode="after")
    def _require_cert_of_key(self) -> TlsDeclaration:
        if self.client_key and not self.client_cert:
            raise ValueError("client_key is the key of client_cert; write client_cert, too")
        return self


class HttpDeclaration(Declaration):
    """Time-outs and limits of the requests, per process."""

    connect_timeout: Duration = Field(default=5.0, description="For making a connection.")
    read_timeout: Duration = Field(default=30.0, description="For the next byte of an answer.")
    answer_timeout: Duration = Field(default=60.0, description="For the whole answer.")
    max_connections: Count = Field(default=8, description="Concurrent requests.")
    max_requests_per_minute: Count = Field(
        default=300,
        description="Requests in any minute; further ones wait. A burst may use a quarter of them.",
    )
