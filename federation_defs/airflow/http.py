"""HTTP to one instance: pooled connections, a rate limit, retries and deadlines."""

from __future__ import annotations

import io
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.exceptions import ProxyError, SSLError
from requests.utils import get_environ_proxies, select_proxy
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_exponential, wait_random
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from federation_defs.declaration import HttpDeclaration, TlsDeclaration
from federation_defs.errors import TlsError, UnreachableError


class RateLimiter:
    """So many requests in any minute, over all threads; who comes too early waits for its turn.

    A quarter of them may come at once (a long list, after quiet), the rest evenly.

    Args:
        per_minute: At most.
    """

    def __init__(self, per_minute: int) -> None:
        burst = max(1, per_minute // 4)
        self._interval_s = 60 / max(1, per_minute - burst)
        self._burst_s = self._interval_s * (burst - 1)
        self._next = 0.0  # when the next turn would be, were all turns evenly spaced
        self._lock = threading.Lock()

    def acquire(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next - self._burst_s)
            self._next = max(now, self._next) + self._interval_s
        time.sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Lets nobody's turn come before, for the server asked for it."""
        with self._lock:
            resumed = time.monotonic() + seconds + self._burst_s
            self._next = max(self._next, resumed)


class DeadlineAdapter(HTTPAdapter):
    """Answers in time, or not at all.

    Args:
        answer_timeout_s: From the end of the request to the answer's last byte.
        max_connections: To one host; who needs one more waits.
        tls: What an https host must prove. It is complete: nothing that requests knows of
            certificates is added to it. None for a host of plain http.
    """

    def __init__(
        self, answer_timeout_s: float, max_connections: int, tls: ssl.SSLContext | None
    ) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._tls_options: dict[str, Any] = {}
        if tls is not None:
            reqs = "CERT_NONE" if tls.verify_mode is ssl.CERT_NONE else "CERT_REQUIRED"
            self._tls_options = {"ssl_context": tls, "cert_reqs": reqs}
        super().__init__(pool_maxsize=max_connections, pool_block=True)

    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, **self._tls_options)
        self._time(self.poolmanager)

    @override
    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs, **self._tls_options)
        self._time(manager)
        return manager

    @override
    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, True)
        return host, {}

    @override
    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing: it would load authorities and keys into the context, connection by connection,
        while other threads use it."""

    def _time(self, manager: Any) -> None:
        timeout_s = self._answer_timeout_s

        def open_answer(sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:
            return HTTPResponse(_TimedSocket(sock, timeout_s), *args, **kwargs)  # type: ignore[arg-type]

        class Plain(HTTPConnection):
            response_class = staticmethod(open_answer)  # type: ignore[assignment]

        class Secure(HTTPSConnection):
            response_class = staticmethod(open_answer)  # type: ignore[assignment]

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain  # type: ignore[assignment]

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure  # type: ignore[assignment]

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


class _TimedSocket:
    """What `http.client` reads an answer from."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._due = time.monotonic() + timeout_s

    def makefile(self, _mode: str) -> io.BufferedReader:
        file = self._sock.makefile("rb", buffering=0)
        return io.BufferedReader(_TimedFile(self._sock, file, self._due))


class _TimedFile(io.RawIOBase):
    def __init__(self, sock: socket.socket, file: Any, due: float) -> None:
        self._sock, self._file, self._due = sock, file, due

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int | None:
        left_s = self._due - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer took too long")
        pause_s = self._sock.gettimeout()
        self._sock.settimeout(left_s if pause_s is None else min(left_s, pause_s))
        return self._file.readinto(buffer)

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


class TlsFileError(Exception):
    """A file that is declared is not there, or holds something else; the message names it."""


def build_tls_context(tls: TlsDeclaration) -> ssl.SSLContext:
    """One context for all connections, complete: loading into it later is not safe with threads.

    Trusted are the system's authorities, where a company puts its own; those that requests brings,
    for systems that have none; and what the environment and the declaration name.

    Raises:
        TlsFileError: A file is missing, or of no use.
    """
    context = ssl.create_default_context()
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(certifi.where())
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # as requests has it
            if path := os.environ.get(variable):
                _load_authorities(context, path, variable)
                break
        if tls.ca_bundle:
            _load_authorities(context, tls.ca_bundle, "tls.ca_bundle")
    if tls.client_cert:
        _load_own_certificate(context, tls.client_cert, tls.client_key)
    return context


def _load_authorities(context: ssl.SSLContext, path: str, source: str) -> None:
    try:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        raise TlsFileError(f"{source} {path}: {_tell(error)}") from error


def _load_own_certificate(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    def refuse_to_ask() -> str:
        # Else OpenSSL asks on the terminal, where nobody sits.
        raise TlsFileError(f"the key in {key or cert} wants a password; give one that does not")

    try:
        context.load_cert_chain(cert, key, password=refuse_to_ask)
    except OSError as error:
        files = f"tls.client_cert {cert}" + (f" and tls.client_key {key}" if key else "")
        raise TlsFileError(f"{files}: {_tell(error)}") from error


def _tell(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "they hold no certificate and key of each other, in PEM"
    return error.strerror or type(error).__name__


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
        self._rate_limiter = RateLimiter(self.http.max_requests_per_minute)
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
        self._rate_limiter.acquire()
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
                    DeadlineAdapter(self.http.answer_timeout, self.http.max_connections, tls)
                )
            return self._opened

    def _choose_pause(self, state: RetryCallState) -> float:
        outcome = state.outcome
        if outcome is not None and not outcome.failed:
            asked_s = read_retry_after(outcome.result())
            if asked_s is not None:
                self._rate_limiter.pause(asked_s)  # the other threads too
                return max(asked_s, _BACKOFF(state))
        return _BACKOFF(state)


class _Session(requests.Session):
    """One host's."""

    def __init__(self, adapter: DeadlineAdapter) -> None:
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
