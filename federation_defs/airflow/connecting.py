"""From a declaration to a client: nothing is sent yet."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from federation_defs.airflow.auth import (
    OpenAuth,
    PasswordAuth,
    SignIn,
    TokenAuth,
    TokenCommandAuth,
    TokenFileAuth,
)
from federation_defs.airflow.basic import BasicAuth
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.clouds import ComposerAuth, MwaaAuth
from federation_defs.airflow.session import AirflowSession
from federation_defs.airflow.transport import Transport
from federation_defs.declaration import (
    AuthDeclaration,
    BasicAuthDeclaration,
    ComposerAuthDeclaration,
    InstanceDeclaration,
    MwaaAuthDeclaration,
    PasswordAuthDeclaration,
    TokenAuthDeclaration,
)
from federation_defs.errors import MissingExtraError

_log = logging.getLogger(__name__)


def build_client(declaration: InstanceDeclaration, account_hint: str) -> AirflowClient:
    """The client of a declared instance.

    Args:
        account_hint: What a person should check when the instance refuses the sign-in.

    Raises:
        MissingExtraError: The declared way to sign in needs a package that is not installed.
    """
    name = declaration.name
    if not declaration.tls.verify:
        _log.warning(
            "Airflow '%s' is not asked to prove who it is (`tls.verify: false`): whoever is in "
            "between can read its credentials. Name its authority in `tls.ca_bundle` instead.",
            name,
        )
    transport = Transport(name, declaration.url, declaration.http, declaration.tls)
    sign_in = _build_sign_in(declaration.auth, transport)
    return AirflowClient(AirflowSession(transport, sign_in, account_hint), declaration.api)


def _build_sign_in(auth: AuthDeclaration, transport: Transport) -> SignIn:
    if isinstance(auth, BasicAuthDeclaration):
        return BasicAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, PasswordAuthDeclaration):
        return PasswordAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, TokenAuthDeclaration):
        return _build_token_auth(auth)
    if isinstance(auth, MwaaAuthDeclaration):
        _need(transport.instance, "mwaa", "boto3")
        return MwaaAuth(transport, auth.environment, auth.region, auth.profile)
    if isinstance(auth, ComposerAuthDeclaration):
        _need(transport.instance, "composer", "google.auth")
        return ComposerAuth(auth.credentials_file)
    return OpenAuth()


def _build_token_auth(auth: TokenAuthDeclaration) -> SignIn:
    if auth.token_file is not None:
        return TokenFileAuth(auth.token_file)
    if auth.token_command is not None:
        return TokenCommandAuth(auth.token_command)
    assert auth.token is not None  # noqa: S101 - the declaration has one of the three
    return TokenAuth(auth.token.get_secret_value())


def _need(instance: str, extra: str, module: str) -> None:
    try:
        is_there = find_spec(module) is not None
    except ModuleNotFoundError:  # of a package's parent: `google`
        is_there = False
    if not is_there:
        raise MissingExtraError(instance, extra, module.replace(".", "-"), extra)
