"""The client of one Airflow instance: its DAGs and assets, besides its runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from federation_defs.airflow.api import is_absent, retry_after_upgrade
from federation_defs.airflow.auth import (
    BasicAuth,
    OpenAuth,
    PasswordAuth,
    SignIn,
    TokenAuth,
    TokenCommandAuth,
    TokenFileAuth,
    UnsetAuth,
)
from federation_defs.airflow.cloud_auth import ComposerAuth, MwaaAuth
from federation_defs.airflow.http import Transport
from federation_defs.airflow.models import (
    AirflowAsset,
    Dag,
    DagImportError,
    Schedule,
    parse_asset,
    parse_dag,
    parse_import_error,
    parse_schedule,
)
from federation_defs.airflow.runs import RunEndpoints
from federation_defs.airflow.session import AirflowSession
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
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    MissingExtraError,
    UnreachableError,
)
from federation_defs.timing import Timing

_log = logging.getLogger(__name__)


class AirflowClient(RunEndpoints):
    """One Airflow instance, with the same methods for both APIs. Safe to share between threads.

    Every method that sends a request may raise an `AirflowError`. Docstrings list only the errors
    that are specific to a method.
    """

    @retry_after_upgrade
    def fetch_dags(
        self,
        id_pattern: str | None = None,
        tags: Sequence[str] = (),
        *,
        with_raw: bool = False,
    ) -> list[Dag]:
        """Fetch all DAGs that the account may read.

        Args:
            id_pattern: Only DAGs whose id contains it, ignoring case. As in SQL's LIKE, `_` matches
                any character and `%` any text.
            tags: Only DAGs with at least one of these tags.
            with_raw: Whether to keep the raw answers.
        """
        params: dict[str, Any] = {}
        if id_pattern is not None:
            params["dag_id_pattern"] = id_pattern
        if tags:
            params["tags"] = list(tags)
        dags, _ = self._fetch_dag_list(params, with_raw=with_raw)
        return [dag for dag in dags if dag.is_present]

    @retry_after_upgrade
    def fetch_known_dags(self) -> tuple[list[Dag], set[str]]:
        """Fetch all DAGs that the account may read, even those whose file has gone or no longer
        parses, and the ids of DAGs whose row can't be read."""
        return self._fetch_dag_list(self.api_version.with_stale)

    def _fetch_dag_list(
        self, params: Mapping[str, Any], *, with_raw: bool = False
    ) -> tuple[list[Dag], set[str]]:
        # Ordered by id, since DAGs come and go while the list is read.
        params = {"order_by": "dag_id", **params}
        page = self._fetch_list("/dags", "dags", partial(parse_dag, with_raw=with_raw), params)
        # By id: a new DAG moves the others, so one of them may come twice.
        dags = {dag.dag_id: dag for dag in page.entries}
        unreadable = {row.dag_id for row in page.unreadable if row.dag_id}
        return list(dags.values()), unreadable - dags.keys()

    @retry_after_upgrade
    def fetch_dags_by_id(self, at_most: int) -> dict[str, Dag] | None:
        """Fetch all DAGs that the account may read, by id, or None if there are more than
        `at_most`, and more than a page."""
        page = self._fetch_pages("/dags", "dags", parse_dag, {"order_by": "dag_id"}, at_most)
        return {dag.dag_id: dag for dag in page.entries} if page.is_whole else None

    @retry_after_upgrade
    def fetch_dag(self, dag_id: str) -> Dag:
        """Fetch a DAG.

        Raises:
            DagNotFoundError: There is no such DAG, or its file has gone or no longer parses.
        """
        response = self._get(build_path("dags", dag_id))
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        dag = self._read(response, parse_dag)
        if not dag.is_present:
            raise DagNotFoundError(self.instance, dag_id, "its file has gone, or no longer parses")
        return dag

    @retry_after_upgrade
    def fetch_schedules(self, dag_ids: Iterable[str]) -> dict[str, Schedule | AirflowError]:
        """Fetch the schedules of DAGs by DAG id, or the error of one that can't be read. Several
        are fetched at a time.

        Raises:
            UnreachableError: The instance does not answer.
        """
        wanted = list(dag_ids)
        return dict(zip(wanted, self._fetch_all(self._fetch_schedule, wanted), strict=True))

    def _fetch_schedule(self, dag_id: str) -> Schedule | AirflowError:
        try:
            response = self._get(build_path("dags", dag_id, "details"))
            if is_absent(response):
                return DagNotFoundError(self.instance, dag_id, "404")
            schedule = self._read(response, parse_schedule)
            if schedule.is_partitioned and (run := self.fetch_latest_finished_run(dag_id)):
                return replace(schedule, latest_key=run.partition_key)
        except AirflowError as error:
            return _check_answered(error)
        return schedule

    @retry_after_upgrade
    def fetch_dag_sources(self, dags: Iterable[Dag]) -> dict[str, str | AirflowError]:
        """Fetch the source code of DAGs by DAG id, or the error of one that can't be read. DAGs
        whose file was deleted are left out.

        Each file is fetched once, several at a time.

        Raises:
            UnreachableError: The instance does not answer.
        """
        dags = list(dags)
        dags_by_file = {dag.file: dag for dag in dags}
        texts = self._fetch_all(self._fetch_source, list(dags_by_file.values()))
        texts_by_file = dict(zip(dags_by_file, texts, strict=True))
        texts_by_dag = ((dag.dag_id, texts_by_file[dag.file]) for dag in dags)
        return {dag_id: text for dag_id, text in texts_by_dag if text is not None}

    def _fetch_source(self, dag: Dag) -> str | AirflowError | None:
        try:
            response = self._get(self.api_version.build_source_path(dag), accept="text/plain")
            return None if is_absent(response) else self._read_text(response)
        except AirflowError as error:
            return _check_answered(error)

    @retry_after_upgrade
    def fetch_import_errors(self) -> list[DagImportError]:
        """Fetch the errors of the DAG files that can't be imported."""
        params = {"order_by": "timestamp"}
        page = self._fetch_list("/importErrors", "import_errors", parse_import_error, params)
        return page.entries

    @retry_after_upgrade
    def fetch_assets(self) -> list[AirflowAsset]:
        """Fetch all Airflow assets (2.x: datasets) that the account may read."""
        name = self.api_version.assets
        return self._fetch_list(f"/{name}", name, parse_asset, {"order_by": "id"}).entries

    def build_dag_url(self, dag_id: str) -> str:
        """Return the address of a DAG's page."""
        return self.url + self.api_version.build_dag_page(dag_id)


def _check_answered(error: AirflowError) -> AirflowError:
    """Return an error about one request, after which other requests may succeed.

    Raises:
        UnreachableError: The instance gave no usable answer.
    """
    if isinstance(error, UnreachableError) and error.status is None:
        raise error
    return error


def build_client(
    declaration: InstanceDeclaration,
    account_hint: str,
    timing: Timing | None = None,
    unset: Sequence[str] = (),
) -> AirflowClient:
    """Build the client of a declared instance.

    Args:
        account_hint: The environment variables or keys to check when the sign-in is refused.
        unset: The environment variables of `url` and `auth` that are not set. If there are any,
            each request fails, and nothing is sent.

    Raises:
        MissingExtraError: The declared sign-in needs a package that is not installed.
    """
    name = declaration.name
    if not declaration.tls.verify:
        _log.warning(
            "Airflow '%s' is not verified (`tls.verify: false`): anybody on the network path can "
            "read its credentials. Declare its certificate authority as `tls.ca_bundle` instead.",
            name,
        )
    transport = Transport(name, declaration.url, declaration.http, declaration.tls, timing)
    sign_in = _build_sign_in(declaration.auth, transport) if not unset else UnsetAuth()
    if unset:
        _log.warning("Airflow '%s' gets no requests until you set %s.", name, " and ".join(unset))
    return AirflowClient(AirflowSession(transport, sign_in, account_hint), declaration.api)


def _build_sign_in(auth: AuthDeclaration, transport: Transport) -> SignIn:
    monotonic = transport.timing.monotonic
    if isinstance(auth, BasicAuthDeclaration):
        return BasicAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, PasswordAuthDeclaration):
        return PasswordAuth(transport, auth.username, auth.password.get_secret_value())
    if isinstance(auth, MwaaAuthDeclaration):
        _check_installed(transport.instance, "mwaa", "boto3")
        return MwaaAuth(transport, auth.environment, auth.region, auth.profile)
    if isinstance(auth, ComposerAuthDeclaration):
        _check_installed(transport.instance, "composer", "google.auth")
        return ComposerAuth(auth.credentials_file, monotonic)
    if isinstance(auth, TokenAuthDeclaration):
        if auth.token_file is not None:
            return TokenFileAuth(auth.token_file)
        if auth.token_command is not None:
            return TokenCommandAuth(auth.token_command, monotonic)
        assert auth.token is not None  # noqa: S101 - the declaration has exactly one of the three
        return TokenAuth(auth.token.get_secret_value())
    return OpenAuth()


def _check_installed(instance: str, extra: str, module: str) -> None:
    try:
        is_installed = find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package, `google`
        is_installed = False
    if not is_installed:
        raise MissingExtraError(instance, module.replace(".", "-"), extra)
