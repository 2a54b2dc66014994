"""A signed-in session with one instance, which turns what it answers amiss into errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import requests

from federation_defs.airflow.auth import BasicAuth, NotSignedInError, OpenAuth, SignIn, is_refused
from federation_defs.airflow.http import Transport, describe_request, read_retry_after
from federation_defs.errors import (
    AirflowError,
    CredentialError,
    PermissionMissingError,
    RequestRefusedError,
    SignInRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
    quote_detail,
)

_OPEN = OpenAuth()


class AirflowSession:
    """Requests to one Airflow, signed in.

    Args:
        transport: How to reach it.
        sign_in: With what.
        account_hint: Where the account is declared, for a person whose sign-in is refused.
    """

    def __init__(self, transport: Transport, sign_in: SignIn, account_hint: str) -> None:
        self.transport = transport
        self._sign_in = sign_in
        self._account_hint = account_hint

    @property
    def instance(self) -> str:
        """The instance's declared name."""
        return self.transport.instance

    @property
    def url(self) -> str:
        return self.transport.url

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        accept: str | None = None,
        is_open: bool = False,
    ) -> requests.Response:
        """The answer, whatever its status.

        Args:
            path: From the instance's `url` on.
            accept: The content type to ask for, if not JSON.
            is_open: The endpoint needs no sign-in, so none is sent.

        Raises:
            UnreachableError: No answer came, or none within the time-outs.
            TlsError: It did not prove who it is.
            CredentialError: There is nothing to sign in with.
            SignInRefusedError: The server gave no token for the account.
        """
        sign_in = _OPEN if is_open else self._sign_in
        # Lists that are asked for with a body read too.
        is_repeatable = method == "GET" or (method == "POST" and path.endswith("/list"))
        content = {"params": params, "json": json, "accept": accept}

        def send() -> requests.Response:
            return self.transport.send(
                method, path, auth=sign_in, is_repeatable=is_repeatable, **content
            )

        try:
            sign_in.prepare()
            response = send()
            # What was refused was not done, so this is safe for all of them.
            return send() if sign_in.renew(response) else response
        except NotSignedInError as error:
            if error.response is not None:
                raise self._build_sign_in_error(error.response, error.reason) from error
            raise CredentialError(self.instance, error.reason, self._account_hint) from error

    def build_error(self, response: requests.Response) -> AirflowError:
        """The error that an answer with a bad status stands for."""
        request, status = describe_request(response), response.status_code
        detail = read_detail(response)
        if is_refused(response):
            remedy = ""
            if "/api/v2/" in request and isinstance(self._sign_in, BasicAuth):
                remedy = "Airflow 3 takes no `type: basic`: declare `type: password`."
            hint = self._account_hint
            return SignInRefusedError(self.instance, request, status, hint, remedy)
        if status == 403:
            needed = describe_needed_permission(request)
            hint = self._account_hint
            return PermissionMissingError(self.instance, request, needed, detail, hint)
        seen = f"{status}{quote_detail(detail)}"
        if status == 429 or status >= 500:
            later = read_retry_after(response)
            seen += f", to be asked again in {later:.0f} s" if later else ""
            return UnreachableError(self.instance, self.url, f"{request}: {seen}")
        if status in (400, 422) and detail:
            return RequestRefusedError(self.instance, request, status, detail)
        remedy = ""
        if response.is_redirect:
            remedy = "An API sends nobody elsewhere: declare where it leads, unless it is a login."
        return UnexpectedAnswerError(self.instance, request, seen, remedy)

    def _build_sign_in_error(self, response: requests.Response, reason: str) -> AirflowError:
        """The error that stands for an answer to the sign-in itself."""
        request = describe_request(response)
        if response.ok and not response.is_redirect:
            return UnexpectedAnswerError(self.instance, request, reason)
        remedies = {
            404: "An Airflow 2 gives no tokens: if this is one, declare `type: basic`.",
            405: "Is `url` the web address with its path prefix?",  # 3.3, asked without its own
        }
        if remedy := remedies.get(response.status_code):
            seen = str(response.status_code)
            return UnexpectedAnswerError(self.instance, request, seen, remedy)
        return self.build_error(response)


def read_detail(response: requests.Response) -> str:
    """Airflow's own words about an error, or where it sends us; one line, as long as they are."""
    if response.is_redirect:
        return f"go to {re.split('[?#]', response.headers['Location'])[0]}"
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    # 2.x titles every 403 "Forbidden", which says nothing. Where there is no such path, 3.x has
    # an `error` in place of the `detail`.
    title = answer.get("title") if response.status_code != 403 else ""
    detail = answer.get("detail") or title or answer.get("error")
    return " ".join(_tell(detail).split())


def _tell(detail: Any) -> str:
    """2.x gives a text; 3.x a text, an object with a reason, or a list of fields that are wrong."""
    if isinstance(detail, list):
        return "; ".join(_tell(entry) for entry in detail)
    if isinstance(detail, dict):
        where = ".".join(str(part) for part in detail.get("loc") or ())
        said = detail.get("msg") or detail.get("message") or detail.get("reason")
        return f"{where}: {said}" if where else str(said or detail)
    return str(detail or "")


_READ = "DAGs.can_read"

_EDIT = "DAGs.can_edit"

_RUNS = f"DAG Runs.can_read, {_READ}"

# What is asked, what that is, its permissions, and one of Airflow's roles that has them whichever
# the auth manager.
_NEEDS = (
    (r"POST .*/dags/[^/]+/dagRuns", "trigger DAG runs", f"DAG Runs.can_create, {_EDIT}", "User"),
    (r"POST .*/clear(TaskInstances)?", "clear tasks", f"Task Instances.can_edit, {_EDIT}", "User"),
    (r"PATCH .*/dagRuns/[^/]+", "stop DAG runs", f"DAG Runs.can_edit, {_EDIT}", "User"),
    (r"DELETE .*/dagRuns/[^/]+", "delete DAG runs", f"DAG Runs.can_delete, {_EDIT}", "User"),
    (r"PATCH .*/dags.*", "edit DAGs", _EDIT, "User"),
    (r"POST .*/datasets/events", "create dataset events", "Datasets.can_create", "Op"),
    (r"POST .*/assets/events", "create asset events", "Assets.can_create", "Op"),
    (r"GET .*/datasets.*", "read datasets", "Datasets.can_read", "Viewer"),
    (r"GET .*/assets.*", "read assets", "Assets.can_read", "Viewer"),
    (r".*/taskInstances.*", "read tasks and logs", f"Task Instances.can_read, {_RUNS}", "Viewer"),
    (r".*/dagRuns.*", "read DAG runs", _RUNS, "Viewer"),
    (r"GET .*/dagSources/.*", "read source code", f"DAG Code.can_read, {_READ}", "Viewer"),
    (r"GET .*/importErrors", "read import errors", "ImportError.can_read", "Viewer"),
    (r"GET .*/dagWarnings", "read DAG warnings", f"DAG Warnings.can_read, {_READ}", "Viewer"),
    (r"GET .*/dags.*", "read DAGs", _READ, "Viewer"),
)


def describe_needed_permission(request: str) -> str:
    """What an account needs for a request; empty if we don't know.

    Args:
        request: Method and path.
    """
    for pattern, deed, permissions, role in _NEEDS:
        if re.fullmatch(pattern, request):
            return f"to {deed} ({permissions}; the role {role} has it)"
    return ""
