"""The client of one Airflow instance, the same for both API versions, and how it is built."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import requests

from federation_defs.airflow.api import follow_upgrade, is_absent
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
from federation_defs.airflow.dags import AssetEndpoints, DagEndpoints
from federation_defs.airflow.http import Transport
from federation_defs.airflow.models import Health, Permissions
from federation_defs.airflow.parsing import parse_health
from federation_defs.airflow.runs import RunEndpoints
from federation_defs.airflow.session import AirflowSession
from federation_defs.airflow.tasks import TaskEndpoints
from federation_defs.airflow.versions import build_path
from federation_defs.declaration import (
    AuthDeclaration,
    BasicAuthDeclaration,
    ComposerAuthDeclaration,
    InstanceDeclaration,
    MwaaAuthDeclaration,
    PasswordAuthDeclaration,
    TokenAuthDeclaration,
)
from federation_defs.errors import DagNotFoundError, MissingExtraError, PermissionMissingError

# No request of this shape is ever carried out (400 or 422); a 403 comes before that.
_REFUSED = {"unknown_field": True}


class AirflowClient(DagEndpoints, RunEndpoints, TaskEndpoints, AssetEndpoints):
    """One Airflow instance. Safe to share between threads.

    Every method may raise an `AirflowError`: the instance is not reached, not signed in to, forbids
    it or answers with something else; what else a method raises is said there.
    """

    @follow_upgrade
    def fetch_health(self) -> Health:
        """How the instance's parts are doing, by their own account. Needs no sign-in."""
        response = self._get_open(self.api_version.health_path)
        self._check_api_version(self.api_version, response)
        return self._read(response, parse_health)

    @follow_upgrade
    def fetch_permissions(self, dag_id: str) -> Permissions:
        """What the account may do with a DAG and to Airflow assets; nothing is done.

        Airflow has no endpoint that tells (2.11, 3.3), but looks at the permission before it looks
        at what is sent: so each is asked for in a way that is refused in any case, and how it is
        refused tells.

        Raises:
            DagNotFoundError: There is no such DAG.
        """
        read = self._get(build_path("dags", dag_id))
        if is_absent(read):
            raise DagNotFoundError(self.instance, dag_id, "404")
        clear = build_path("dags", dag_id, "clearTaskInstances")
        events = f"{self.api_version.asset_path}/events"
        return Permissions(
            may_read=self._is_allowed(read),
            may_trigger=self._may_post(build_path("dags", dag_id, "dagRuns"), _REFUSED),
            may_clear=self._may_post(clear, _REFUSED),
            may_post_asset_events=self._may_post(events, self.api_version.refused_event),
        )

    def _may_post(self, path: str, body: object) -> bool:
        return self._is_allowed(self._send("POST", path, json=body))

    def _is_allowed(self, response: requests.Response) -> bool:
        if response.status_code in (200, 400, 404, 405, 422):
            # 405 is a 2.x from before there were such events: nobody may post them.
            return response.status_code != 405
        error = self.session.build_error(response)
        if isinstance(error, PermissionMissingError):
            return False
        raise error

    def build_dag_url(self, dag_id: str) -> str:
        """Where a person looks at a DAG."""
        return self.url + self.api_version.build_dag_page(dag_id)


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
