"""HTTP to one instance: pooled, paced, in time, over a connection that can be trusted."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from requests.exceptions import ProxyError, SSLError
from requests.utils import get_environ_proxies, select_proxy
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_exponential, wait_random
from typing_extensions import override

from federation_defs.airflow.pace import Pace
from federation_defs.airflow.sockets import TimedAdapter
from federation_defs.airflow.tls import TlsFileError, build_tls_context
from federation_defs.declaration import HttpDeclaration, TlsDeclaration
from federation_defs.errors import TlsError, UnreachableError

ATTEMPTS = 4
MAX_RETRY_AFTER_S = 10.0  # who can wait longer, a sensor or a run, asks again later

_BACKOFF = wait_exponential(multiplier=0.3, max=5) + wait_random(0, 0.3)
# 500 is among them because Airflow on SQLite answers it while another process has the lock.
_BUSY = frozenset({429, 500, 502, 503, 504})
# How Python 3.10 to 3.13 name a connection that was cut off in the middle of TLS.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Transport:
    """Requests to one instance, and no other: redirects are not followed, cookies not kept.

    Safe to share between threads; one per instance and process keeps the promises of `http`.

    Args:
        instance: The instance's declared name, for errors.
        url: Where its web server or API server is; a path prefix and a trailing slash are fine.
    """

    def __init__(
        self,
        instance: str,
        url: str,
        http: HttpDeclaration | None = None,
        tls: TlsDeclaration | None = None,
    ) -> None:
        self.instance = instance
        self.url = url.rstrip("/")
        self.http = http or HttpDeclaration()
        self._tls = tls or TlsDeclaration()
        self._pace = Pace(self.http.max_requests_per_minute)
        self._opened: _Session | None = None
        self._lock = threading.Lock()

    def send(
        self,
        method: str,
        path: str,
        *,
        auth: AuthBase,
        is_repeatable: bool,
        accept: str | None = None,
        **content: Any,
    ) -> requests.Response:
        """The answer, whatever its status.

        Args:
            path: From the instance's `url` on.
            is_repeatable: Asking twice does no more than asking once. If so, a busy server and a
                connection that broke get three more tries, for seconds only; a time-out does not.
            accept: The content type to ask for, if not JSON.
            content: `params`, `json` or `data`, as requests takes them.

        Raises:
            UnreachableError: No answer came, or not within the time-outs.
            TlsError: It did not prove who it is, or we did not.
        """
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS if is_repeatable else 1),
            wait=self._choose_pause,
            retry=retry_if_result(_is_worth_waiting) | retry_if_exception(_may_pass),
            retry_error_callback=_give_last,
        )
        headers = {"Accept": accept} if accept else None
        return retrying(self._send_once, method, path, auth=auth, headers=headers, **content)

    def _send_once(
        self, method: str, path: str, *, headers: Mapping[str, str] | None, **content: Any
    ) -> requests.Response:
        session = self._open()
        self._pace.wait_for_turn()
        handled = sys.exc_info()[1]  # what the caller is dealing with is not what comes of this
        try:
            return session.request(
                method,
                self.url + path,
                headers=headers,
                timeout=(self.http.connect_timeout, self.http.read_timeout),
                # An API does not redirect: it is a login page, or http for https; and a password
                # must not follow to wherever it is sent.
                allow_redirects=False,
                **content,
            )
        except SSLError as error:
            if isinstance(_innermost(error, handled), _CUT_OFF):
                raise UnreachableError(self.instance, self.url, _reason(error, handled)) from error
            raise TlsError(self.instance, self.url, _reason(error, handled)) from error
        except requests.RequestException as error:
            is_late = isinstance(error, requests.Timeout) or isinstance(
                _innermost(error, handled), TimeoutError
            )
            reason = "timed out" if is_late else _reason(error, handled)
            if isinstance(error, ProxyError):
                reason = f"the proxy: {reason}"
            raise UnreachableError(self.instance, self.url, reason, is_late=is_late) from error

    def _open(self) -> _Session:
        """The session, from the first request on: what reads files is not done at load."""
        with self._lock:
            if self._opened is None:
                if not is_proxy_usable(self.url):
                    said = "the proxy: what HTTP_PROXY or HTTPS_PROXY holds is no http address"
                    raise UnreachableError(self.instance, self.url, said, is_late=True)
                try:
                    is_secure = self.url.lower().startswith("https:")
                    tls = build_tls_context(self._tls) if is_secure else None
                except TlsFileError as error:
                    raise TlsError(self.instance, self.url, str(error)) from error
                self._opened = _Session(
                    TimedAdapter(self.http.answer_timeout, self.http.max_connections, tls)
                )
            return self._opened

    def _choose_pause(self, state: RetryCallState) -> float:
        outcome = state.outcome
        if outcome is not None and not outcome.failed:
            asked_s = read_retry_after(outcome.result())
            if asked_s is not None:
                self._pace.pause(asked_s)  # the other threads too
                return max(asked_s, _BACKOFF(state))
        return _BACKOFF(state)


class _Session(requests.Session):
    """One host's."""

    def __init__(self, adapter: TimedAdapter) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"federation-defs/{version('federation-defs')}"
        self.headers["Accept"] = "application/json"
        # A cookie is a sign-in of its own, and would outlast or contradict the declared one.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere. (requests reads where it leads even if it does not go, and may fail at it.)"""


def is_proxy_usable(url: str) -> bool:
    """Whether the proxy that the environment has for this address, if it has one, is an address.

    requests and urllib3 quote one that is none when they fail at it, with the password in it.
    """
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy is None:
        return True
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class NoAuth(AuthBase):
    """Sends nothing. (With no auth at all, requests looks into ~/.netrc.)"""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r

    def __repr__(self) -> str:
        return "NoAuth()"


def describe_request(response: requests.Response) -> str:
    """Method and path of what was asked; no query, and never the host's user info."""
    return f"{response.request.method} {response.request.path_url.partition('?')[0]}"


def read_server_time(response: requests.Response) -> datetime | None:
    """When the server answered, by its own clock (its `Date` header, UTC); None if it does not
    say, or nothing that is a date."""
    return _parse_http_date(response.headers.get("Date", ""))


def read_retry_after(response: requests.Response) -> float | None:
    """In how many seconds the server wants to be asked again; None if it does not say."""
    said = response.headers.get("Retry-After", "")
    if said.strip().isdecimal():
        return float(said)
    moment = _parse_http_date(said)
    if moment is None:
        return None
    now = read_server_time(response) or datetime.now(timezone.utc)
    return max(0.0, (moment - now).total_seconds())


def _parse_http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or timezone.utc)


def _is_worth_waiting(response: requests.Response) -> bool:
    """Whether a busy server may be asked again soon enough."""
    return response.status_code in _BUSY and (read_retry_after(response) or 0) <= MAX_RETRY_AFTER_S


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, UnreachableError) and not error.is_late


def _give_last(state: RetryCallState) -> requests.Response:
    assert state.outcome is not None  # noqa: S101 - there was an attempt
    return state.outcome.result()


def _innermost(error: BaseException, handled: BaseException | None) -> BaseException:
    """What it came from, up to what was being dealt with when it came."""
    while (inner := error.__cause__ or error.__context__) is not None and inner is not handled:
        error = inner
    return error


def _reason(error: requests.RequestException, handled: BaseException | None) -> str:
    """The innermost cause in a few words: what requests and urllib3 wrap around it says little."""
    cause = _innermost(error, handled)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return cause.reason.lower().replace("_", " ") if cause.reason else type(cause).__name__
    if isinstance(error, ProxyError) and not getattr(cause, "strerror", None):
        return str(cause)
    return getattr(cause, "strerror", None) or type(cause).__name__
