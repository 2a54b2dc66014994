"""HTTP to one instance: pooled connections, a rate limit and retries."""

from __future__ import annotations

import random
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any

import requests
from requests.auth import AuthBase
from requests.exceptions import ProxyError, SSLError
from typing_extensions import override

from federation_defs.airflow.connections import (
    DeadlineAdapter,
    TlsFileError,
    build_tls_context,
    is_proxy_usable,
)
from federation_defs.declaration import HttpDeclaration, TlsDeclaration
from federation_defs.errors import TlsError, UnreachableError
from federation_defs.timing import Timing

MAX_TRIES = 4
MAX_RETRY_AFTER_S = 10.0  # before a longer pause, it is the caller that retries
# 500 is included because Airflow on SQLite answers it while another process holds the lock.
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
_CHUNK_BYTES = 65_536
_MAX_LINE_BYTES = 1_000_000
_BAD_PROXY = "the proxy: the address in HTTP_PROXY or HTTPS_PROXY is not an http address"
# What Python 3.10 to 3.13 raise for a connection that breaks during TLS.
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class RateLimiter:
    """Limits the number of requests in any minute, over all threads.

    A quarter of the requests may come in a burst. The others are evenly spaced.
    """

    def __init__(self, per_minute: int, timing: Timing) -> None:
        burst = max(1, per_minute // 4)
        self._interval_s = 60 / max(1, per_minute - burst)
        self._burst_s = self._interval_s * (burst - 1)
        self._next = 0.0  # monotonic time at which the next request would start without bursts
        self._timing = timing
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Wait until a request may start."""
        with self._lock:
            now = self._timing.monotonic()
            start = max(now, self._next - self._burst_s)
            self._next = max(now, self._next) + self._interval_s
        self._timing.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Let no request start for this many seconds."""
        with self._lock:
            self._next = max(self._next, self._timing.monotonic() + seconds + self._burst_s)


class Transport:
    """Sends requests to one instance and no other host. Follows no redirects, keeps no cookies.

    Safe to share between threads. The limits of `http` hold per transport, so a process has one
    for each instance.
    """

    def __init__(
        self,
        instance: str,
        url: str,
        http: HttpDeclaration,
        tls: TlsDeclaration,
        timing: Timing | None = None,
    ) -> None:
        self.instance = instance
        self.url = url.rstrip("/")
        self.http = http
        self.timing = timing or Timing()
        self._tls = tls
        self._rate_limiter = RateLimiter(http.max_requests_per_minute, self.timing)
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def send(
        self,
        method: str,
        path: str,
        *,
        auth: AuthBase,
        is_repeatable: bool,
        accept: str | None = None,
        is_streamed: bool = False,
        **content: Any,
    ) -> requests.Response:
        """Send a request and return the answer, whatever its status.

        Args:
            path: Below the instance's `url`.
            is_repeatable: Whether sending it twice does no more than sending it once. Repeatable
                requests are tried up to four times if the server is busy or the connection breaks.
                A time-out is not retried.
            accept: The content type to ask for, if not JSON.
            is_streamed: Whether to return a good answer before its body has arrived. It occupies a
                connection until the caller has read the body and closed the answer.
            content: `params`, `json` or `data`, as in requests.

        Raises:
            UnreachableError: No answer came within the time-outs.
            TlsError: The server's certificate was not trusted, or ours was refused.
        """
        content |= {"headers": {"Accept": accept} if accept else None, "stream": is_streamed}
        session, tries = self._open_session(), MAX_TRIES if is_repeatable else 1
        for number in range(1, tries + 1):
            pause_s = self.timing.retry_request.pause_s(number) * random.uniform(1, 1.5)  # noqa: S311
            try:
                response = self._send_once(session, method, path, auth=auth, **content)
            except UnreachableError as error:
                if number == tries or error.is_late:
                    raise
            else:
                retry_after_s = read_retry_after(response) or 0.0
                is_busy = response.status_code in _RETRIED_STATUSES
                if not is_busy or retry_after_s > MAX_RETRY_AFTER_S:
                    return response
                if retry_after_s:  # for all threads, even if this request is not repeated
                    self._rate_limiter.pause(retry_after_s)
                    pause_s = max(pause_s, retry_after_s)
                if number == tries:
                    return response
            self.timing.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _send_once(
        self, session: requests.Session, method: str, path: str, **content: Any
    ) -> requests.Response:
        self._rate_limiter.acquire()
        with self._describing_errors():
            response = session.request(
                method,
                self.url + path,
                timeout=(self.http.connect_timeout, self.http.read_timeout),
                # Airflow's API does not redirect; login pages and addresses with http in place of
                # https do. Credentials must not follow to another host.
                allow_redirects=False,
                **content,
            )
            if response.status_code >= 300:
                _ = response.content  # a streamed answer would occupy a connection
            return response

    def read_lines(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the lines of a streamed answer. A line of more than 1 MB is yielded in parts.

        Raises:
            UnreachableError: The answer broke off, or did not end within the time-outs.
        """
        rest = b""
        with self._describing_errors():
            for chunk in response.iter_content(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if len(rest) > _MAX_LINE_BYTES:
                    yield rest
                    rest = b""
        if rest:
            yield rest

    @contextmanager
    def _describing_errors(self) -> Iterator[None]:
        """Raise our errors in place of those of requests."""
        handled = sys.exc_info()[1]  # an error that the caller is handling, not the cause of ours
        try:
            yield
        except SSLError as error:
            reason = _describe_cause(error, handled)
            if isinstance(_find_root_cause(error, handled), _BROKEN_TLS):
                raise UnreachableError(self.instance, self.url, reason) from error
            raise TlsError(self.instance, self.url, reason) from error
        except requests.RequestException as error:
            is_late = isinstance(error, requests.Timeout) or isinstance(
                _find_root_cause(error, handled), TimeoutError
            )
            reason = "timed out" if is_late else _describe_cause(error, handled)
            if isinstance(error, ProxyError):
                reason = f"the proxy: {reason}"
            raise UnreachableError(self.instance, self.url, reason, is_late=is_late) from error

    def _open_session(self) -> _Session:
        """Return the session. It is opened at the first request, because opening it reads files,
        and loading definitions must not."""
        with self._lock:
            if self._session is None:
                if not is_proxy_usable(self.url):
                    raise UnreachableError(self.instance, self.url, _BAD_PROXY)
                is_https = self.url.lower().startswith("https:")
                try:
                    tls = build_tls_context(self._tls) if is_https else None
                except TlsFileError as error:
                    raise TlsError(self.instance, self.url, str(error)) from error
                http = self.http
                adapter = DeadlineAdapter(http.answer_timeout, http.max_connections, tls)
                self._session = _Session(adapter)
            return self._session


class _Session(requests.Session):
    def __init__(self, adapter: DeadlineAdapter) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"federation-defs/{version('federation-defs')}"
        self.headers["Accept"] = "application/json"
        # A session cookie would outlast or contradict the declared sign-in.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None. requests parses the target even if it does not follow it, and fails on an
        invalid one."""


class NoAuth(AuthBase):
    """Sends no credentials. (Without any auth, requests reads ~/.netrc.)"""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


def describe_request(response: requests.Response) -> str:
    """Return method and path of the answered request, without its query and the user info."""
    return f"{response.request.method} {response.request.path_url.partition('?')[0]}"


def read_cookie(response: requests.Response, name: str, path: str = "/api/") -> str | None:
    """Return the value of a cookie that the answer sets, or None.

    Of several with this name, the one that a browser would send first.

    Args:
        path: The path of the request for which the cookie will be sent.
    """
    found = [cookie for cookie in response.cookies if cookie.name == name]
    fitting = [cookie for cookie in found if path.startswith(cookie.path)]
    return max(fitting or found, key=lambda cookie: len(cookie.path)).value if found else None


def read_object(response: requests.Response) -> Mapping[str, Any]:
    """Return the JSON object in an answer; an empty one if there is none."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, Mapping) else {}


def read_server_time(response: requests.Response) -> datetime | None:
    """Return the time of the answer by the server's clock, in UTC; None without a valid `Date`."""
    return _parse_http_date(response.headers.get("Date", ""))


def read_retry_after(response: requests.Response) -> float | None:
    """Return the seconds to wait by the answer's `Retry-After`; None without a valid one."""
    value = response.headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    moment = _parse_http_date(value)
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


def _find_root_cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return the first error in the chain, without those that the caller was handling before."""
    while (cause := error.__cause__ or error.__context__) is not None and cause is not handled:
        error = cause
    return error


def _describe_cause(error: requests.RequestException, handled: BaseException | None) -> str:
    """Return the root cause in a few words, without the layers of requests and urllib3."""
    cause = _find_root_cause(error, handled)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return cause.reason.lower().replace("_", " ") if cause.reason else type(cause).__name__
    if isinstance(error, ProxyError) and not getattr(cause, "strerror", None):
        return str(cause)
    return getattr(cause, "strerror", None) or type(cause).__name__
