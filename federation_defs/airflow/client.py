"""The client of one Airflow instance, built from its declaration."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from federation_defs.airflow.auth import (
    BasicAuth,
    OpenAuth,
    PasswordAuth,
    SignIn,
    TokenAuth,
    TokenCommandAuth,
    TokenFileAuth,
)
from federation_defs.airflow.cloud_auth import ComposerAuth, MwaaAuth
from federation_defs.airflow.dags import DagEndpoints
from federation_defs.airflow.http import Transport
from federation_defs.airflow.runs import RunEndpoints
from federation_defs.airflow.session import AirflowSession
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
from federation_defs.timing import Timing

_log = logging.getLogger(__name__)


class AirflowClient(DagEndpoints, RunEndpoints):
    """One Airflow instance, with the same methods for both APIs. Safe to share between threads.

    Every method that sends a request may raise an `AirflowError`. Docstrings list only the errors
    that are specific to a method.
    """


def build_client(
    declaration: InstanceDeclaration, account_hint: str, timing: Timing | None = None
) -> AirflowClient:
    """Build the client of a declared instance.

    Args:
        account_hint: The environment variables or keys to check when the sign-in is refused.

    Raises:
        MissingExtraError: The declared sign-in needs a package that is not installed.
    """
    name = declaration.name
    if not declaration.tls.verify:
        _log.warning(
            "Airflow '%s' is not verified (`tls.verify: false`): anybody between here and there "
            "can read its credentials. Declare its authority as `tls.ca_bundle` instead.",
            name,
        )
    transport = Transport(name, declaration.url, declaration.http, declaration.tls, timing)
    sign_in = _build_sign_in(declaration.auth, transport)
    return AirflowClient(AirflowSession(transport, sign_in, account_hint), declaration.api)


def _build_sign_in(auth: AuthDeclaration, transport: Transport) -> SignIn:
    if isinstance(auth, BasicAuthDeclaration):
        return BasicAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, PasswordAuthDeclaration):
        return PasswordAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, TokenAuthDeclaration):
        return _build_token_auth(auth, transport)
    if isinstance(auth, MwaaAuthDeclaration):
        _check_installed(transport.instance, "mwaa", "boto3")
        return MwaaAuth(transport, auth.environment, auth.region, auth.profile)
    if isinstance(auth, ComposerAuthDeclaration):
        _check_installed(transport.instance, "composer", "google.auth")
        return ComposerAuth(auth.credentials_file, transport.timing.monotonic)
    return OpenAuth()


def _build_token_auth(auth: TokenAuthDeclaration, transport: Transport) -> SignIn:
    if auth.token_file is not None:
        return TokenFileAuth(auth.token_file)
    if auth.token_command is not None:
        return TokenCommandAuth(auth.token_command, transport.timing.monotonic)
    assert auth.token is not None  # noqa: S101 - the declaration has exactly one of the three
    return TokenAuth(auth.token.get_secret_value())


def _check_installed(instance: str, extra: str, module: str) -> None:
    try:
        is_installed = find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package, `google`
        is_installed = False
    if not is_installed:
        raise MissingExtraError(instance, module.replace(".", "-"), extra)
