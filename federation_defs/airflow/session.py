"""One pooled HTTP session per instance and process: it times out, retries what is safe, and
turns everything that goes wrong into an error that names the instance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from federation_defs.errors import (
    AirflowError,
    PermissionMissingError,
    SignInRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 8


class _ReadRetry(Retry):
    """Repeats reads, for seconds only: who can wait longer, a sensor or a run, asks again later.

    What timed out is not repeated: four times 30 s is more than a sensor has.
    """

    def increment(self, *args: Any, error: Exception | None = None, **kwargs: Any) -> Retry:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(*args, error=error, **kwargs)


_RETRY = _ReadRetry(
    total=3,
    read=2,
    backoff_factor=0.3,
    backoff_jitter=0.2,
    # 500 is among them because Airflow on SQLite answers it while another process has the lock.
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("GET",),
    respect_retry_after_header=False,  # a maintenance page's hour would be slept here, three times
    raise_on_status=False,
)


class NoTokenError(requests.RequestException):
    """The token endpoint answered 201 with something else."""


class AirflowSession:
    """Requests to one Airflow.

    Args:
        instance: The instance's declared name, for errors.
        url: Where its web server or API server is; a path prefix and a trailing slash are fine.
        auth: How to sign in.
        account_hint: Where the account is declared, for a person whose sign-in is refused.
    """

    def __init__(self, instance: str, url: str, auth: AuthBase, account_hint: str) -> None:
        self.instance = instance
        self.url = url.rstrip("/")
        self._auth = auth
        self._account_hint = account_hint
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"federation-defs/{version('federation-defs')}"
        self._session.headers["Accept"] = "application/json"
        adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, pool_block=True, max_retries=_RETRY)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        accept: str | None = None,
        is_open: bool = False,
    ) -> requests.Response:
        """The answer, whatever its status.

        Args:
            path: From the instance's `url` on.
            accept: The content type to ask for, if not JSON.
            is_open: The endpoint needs no sign-in, so none is sent.

        Raises:
            UnreachableError: No answer came, or none within the time-outs (5 s to connect, which
                is tried four times, 30 s between bytes).
        """
        try:
            response = self._session.request(
                method,
                self.url + path,
                params=params,
                json=json,
                headers={"Accept": accept} if accept else None,
                auth=NoAuth() if is_open else self._auth,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                # An API does not redirect: it is a login page, or http for https; and a password
                # must not follow to wherever it is sent.
                allow_redirects=False,
            )
        except NoTokenError as error:
            asked = "POST /auth/token"
            raise UnexpectedAnswerError(self.instance, asked, str(error)) from error
        except requests.RequestException as error:
            raise UnreachableError(self.instance, self.url, _reason(error)) from error
        return response

    def build_error(self, response: requests.Response) -> AirflowError:
        """The error that an answer with a bad status stands for."""
        request, status = describe_request(response), response.status_code
        detail = read_detail(response)
        # 403 with these words: a token that another secret signed (3.x).
        if status == 401 or (status == 403 and "Invalid JWT token" in detail):
            return SignInRefusedError(self.instance, request, status, self._account_hint)
        if status == 403:
            return PermissionMissingError(self.instance, request, detail, self._account_hint)
        seen = f"{status}: {detail}" if detail else str(status)
        if status == 429 or status >= 500:
            return UnreachableError(self.instance, self.url, f"{request}: {seen}")
        return UnexpectedAnswerError(self.instance, request, seen)


class NoAuth(AuthBase):
    """Sends nothing. (With no auth at all, requests looks into ~/.netrc.)"""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


def describe_request(response: requests.Response) -> str:
    """Method and path of what was asked; no query, and never the host's user info."""
    return f"{response.request.method} {response.request.path_url.partition('?')[0]}"


def read_detail(response: requests.Response) -> str:
    """Airflow's own words about an error, or where it sends us; one line, at most 300 letters."""
    if response.is_redirect:
        return f"go to {response.headers['Location']}"
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        return ""
    if not isinstance(answer, dict):
        return ""
    # 2.x titles every 403 "Forbidden", which says nothing.
    detail = answer.get("detail") or (answer.get("title") if response.status_code != 403 else "")
    return " ".join(_tell(detail).split())[:300]


def _tell(detail: Any) -> str:
    """2.x gives a text; 3.x a text, an object with a reason, or a list of fields that are wrong."""
    if isinstance(detail, list):
        return "; ".join(_tell(entry) for entry in detail)
    if isinstance(detail, dict):
        where = ".".join(str(part) for part in detail.get("loc") or ())
        said = detail.get("msg") or detail.get("message") or detail.get("reason")
        return f"{where}: {said}" if where else str(said or detail)
    return str(detail or "")


def read_server_time(response: requests.Response) -> datetime | None:
    """When the server answered, by its own clock (its `Date` header, UTC); None if it does not
    say, or nothing that is a date."""
    try:
        date = parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return None
    return date.replace(tzinfo=date.tzinfo or timezone.utc)


def _reason(error: requests.RequestException) -> str:
    """The innermost cause in a few words: what requests and urllib3 wrap around it says little."""
    if error.response is not None:
        return f"{error.response.status_code} to {describe_request(error.response)}"
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError):
        return "timed out"
    return getattr(cause, "strerror", None) or type(cause).__name__
