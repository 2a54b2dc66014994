"""A signed-in session with one instance, and the errors for its answers."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from typing import Any

import requests
from typing_extensions import override

from federation_defs.airflow.auth import (
    BasicAuth,
    NotSignedInError,
    OpenAuth,
    SignIn,
    UnsetAuth,
    is_refused,
)
from federation_defs.airflow.http import (
    Transport,
    describe_request,
    read_object,
    read_retry_after,
)
from federation_defs.errors import (
    AirflowError,
    CredentialError,
    PermissionMissingError,
    RequestRefusedError,
    SignInRefusedError,
    TriggersOffError,
    UnexpectedAnswerError,
    UnreachableError,
    quote_detail,
)
from federation_defs.redaction import redact_text
from federation_defs.safety import find_safe_mode_reason

_OPEN = OpenAuth()


class AirflowSession:
    """Sends signed-in requests to one Airflow.

    Args:
        account_hint: The environment variables or keys that declare the account, for the error
            about a refused sign-in.
    """

    def __init__(self, transport: Transport, sign_in: SignIn, account_hint: str) -> None:
        self.transport = transport
        self.instance = transport.instance
        self.url = transport.url
        self._sign_in = sign_in
        self._account_hint = account_hint

    def request(
        self, method: str, path: str, *, is_open: bool = False, **content: Any
    ) -> requests.Response:
        """Send a request and return the answer, whatever its status.

        Args:
            path: Below the instance's `url`.
            is_open: Whether the endpoint needs no sign-in. Then no credentials are sent.
            content: `params`, `json`, `accept` and `is_streamed`, as for `Transport.send`.

        Raises:
            UnreachableError, TlsError: As `Transport.send`.
            CredentialError: There are no credentials.
            SignInRefusedError: The server refused a token to the account.
            UnexpectedAnswerError: The answer can't be read.
        """
        is_open = is_open and not isinstance(self._sign_in, UnsetAuth)
        sign_in = _OPEN if is_open else self._sign_in
        content |= {"auth": sign_in, "is_repeatable": _is_reading(method, path)}
        send = partial(self.transport.send, method, path, **content)
        try:
            sign_in.prepare()
            response = send()
            # A refused request changed nothing, so any method is safe to send again.
            return send() if sign_in.renew(response) else response
        except NotSignedInError as error:
            if error.response is not None:
                raise self._build_sign_in_error(error.response, error.reason) from error
            raise CredentialError(self.instance, error.reason, self._account_hint) from error
        except AirflowError:
            raise
        except Exception as error:  # any error of the libraries that read an answer
            seen = f"an unreadable answer ({type(error).__name__})"
            raise UnexpectedAnswerError(self.instance, f"{method} {path}", seen) from error

    def build_error(self, response: requests.Response) -> AirflowError:
        """Build the error for an answer with a bad status."""
        request, status = describe_request(response), response.status_code
        detail, hint = read_detail(response), self._account_hint
        if is_refused(response):
            is_basic = "/api/v2/" in request and isinstance(self._sign_in, BasicAuth)
            remedy = "Airflow 3 does not accept `type: basic`: declare `type: password`."
            return SignInRefusedError(
                self.instance, request, status, hint, remedy if is_basic else ""
            )
        if status == 403:
            needed = describe_needed_permission(request)
            return PermissionMissingError(self.instance, request, needed, detail, hint)
        observed = f"{status}{quote_detail(detail)}"
        if status == 429 or status >= 500:
            retry_after_s = read_retry_after(response)
            observed += f", retry after {retry_after_s:.0f} s" if retry_after_s else ""
            reason = f"{request}: {observed}"
            return UnreachableError(self.instance, self.url, reason, status=status)
        if status in (400, 422) and detail:
            return RequestRefusedError(self.instance, request, status, detail)
        remedy = ""
        if response.is_redirect:
            remedy = "An API does not redirect: unless it is a login, set `url` to the target."
        return UnexpectedAnswerError(self.instance, request, observed, remedy)

    def _build_sign_in_error(self, response: requests.Response, reason: str) -> AirflowError:
        """Build the error for an answer to the sign-in itself."""
        request = describe_request(response)
        if response.ok and not response.is_redirect:
            return UnexpectedAnswerError(self.instance, request, reason)
        remedies = {
            404: "Airflow 2 issues no tokens: if this is an Airflow 2, declare `type: basic`.",
            405: "Is `url` the web address with its path prefix?",  # 3.3, without its prefix
        }
        if remedy := remedies.get(response.status_code):
            return UnexpectedAnswerError(self.instance, request, str(response.status_code), remedy)
        return self.build_error(response)


class RequestsFacade(requests.Session):
    """A `requests.Session` for other libraries, whose requests go through an `AirflowSession`.

    They share its connections, rate limit, sign-in and errors. Only params, json and an Accept
    header are accepted. In safe mode, requests that change something raise a `TriggersOffError`.
    """

    def __init__(self, session: AirflowSession) -> None:
        super().__init__()
        self._session = session

    @override
    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        session = self._session
        if not url.startswith(f"{session.url}/"):
            raise ValueError(f"{url} is not below {session.url}, and would get its credentials")
        given = {name: value for name, value in kwargs.items() if value is not None}
        headers = given.pop("headers", {})
        for name in ("timeout", "allow_redirects"):  # the session has its own
            given.pop(name, None)
        if given.keys() - {"params", "json"} or headers.keys() - {"Accept"}:
            raise TypeError(f"{method} {url}: only params, json and an Accept header are passed on")
        method, path = method.upper(), url.removeprefix(session.url)
        reason = None if _is_reading(method, path) else find_safe_mode_reason(os.environ)
        if reason is not None:
            raise TriggersOffError(session.instance, f"answer {method} {path}", reason)
        response = session.request(method, path, accept=headers.get("Accept"), **given)
        if response.status_code >= 300:
            raise session.build_error(response)
        return response


def _is_reading(method: str, path: str) -> bool:
    """Return whether a request changes nothing. A POST to `…/list` has its filters in the body."""
    return method == "GET" or (method == "POST" and path.endswith("/list"))


def read_detail(response: requests.Response) -> str:
    """Return Airflow's message about an error, or the target of a redirect, as one line without
    the secrets of the request's conf."""
    if response.is_redirect:
        return f"go to {re.split('[?#]', response.headers['Location'])[0]}"
    answer = read_object(response)
    # 2.x titles every 403 "Forbidden", which adds nothing. For an unknown path, 3.x has `error` in
    # place of `detail`.
    title = answer.get("title") if response.status_code != 403 else ""
    detail = answer.get("detail") or title or answer.get("error")
    try:
        text = " ".join(_format_detail(detail).split())
        return redact_text(text, _read_body(response.request))
    except RecursionError:
        return ""


def _read_body(request: requests.PreparedRequest) -> Any:
    """Return the JSON that was sent, or None."""
    try:
        return json.loads(request.body) if isinstance(request.body, bytes | str) else None
    except ValueError:  # a form
        return None


def _format_detail(detail: Any) -> str:
    """Format a text (2.x, 3.x), or an object with a reason or a list of wrong fields (3.x)."""
    if isinstance(detail, list):
        return "; ".join(_format_detail(entry) for entry in detail)
    if isinstance(detail, dict):
        location = detail.get("loc")
        location = ".".join(map(str, location)) if isinstance(location, list) else location
        message = detail.get("msg") or detail.get("message") or detail.get("reason")
        return f"{location}: {message}" if location else str(message or detail)
    return str(detail or "")


_READ = "DAGs.can_read"
_EDIT = "DAGs.can_edit"
_RUNS = f"DAG Runs.can_read, {_READ}"
# Request, action, permissions, and a role that has them with every auth manager.
_NEEDED_PERMISSIONS = (
    (r"POST .*/dags/[^/]+/dagRuns", "trigger DAG runs", f"DAG Runs.can_create, {_EDIT}", "User"),
    (
        r"POST .*/clear(TaskInstances)?",
        "clear tasks",
        f"Task Instances.can_edit, DAG Runs.can_edit, {_EDIT}",
        "User",
    ),
    (r"PATCH .*/dagRuns/[^/]+", "stop DAG runs", f"DAG Runs.can_edit, {_EDIT}", "User"),
    (r"PATCH .*/dags.*", "edit DAGs", _EDIT, "User"),
    (r"POST .*/api/v\d/datasets/events", "create dataset events", "Datasets.can_create", "Op"),
    (r"POST .*/api/v\d/assets/events", "create asset events", "Assets.can_create", "Op"),
    (r"GET .*/api/v\d/datasets.*", "read datasets", "Datasets.can_read", "Viewer"),
    (r"GET .*/api/v\d/assets.*", "read assets", "Assets.can_read", "Viewer"),
    (r"GET .*/taskInstances/.+/logs/.*", "read logs", f"Task Logs.can_read, {_READ}", "Viewer"),
    (r".*/taskInstances.*", "read tasks", f"Task Instances.can_read, {_RUNS}", "Viewer"),
    (r".*/dagRuns.*", "read DAG runs", _RUNS, "Viewer"),
    (r"GET .*/dagSources/.*", "read source code", f"DAG Code.can_read, {_READ}", "Viewer"),
    (r"GET .*/importErrors", "read import errors", "ImportError.can_read", "Viewer"),
    (r"GET .*/dags.*", "read DAGs", _READ, "Viewer"),
)


def describe_needed_permission(request: str) -> str:
    """Return the permission that a request needs, as it follows "permission"; "" if unknown.

    Args:
        request: Method and path.
    """
    for pattern, action, permissions, role in _NEEDED_PERMISSIONS:
        if re.fullmatch(pattern, request):
            return f"to {action} ({permissions}; the role {role} has it)"
    return ""
