"""Connections to one instance: TLS, the environment's proxy, and a deadline for each answer."""

from __future__ import annotations

import io
import os
import socket
import ssl
import time
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection

from federation_defs.declaration import TlsDeclaration


class DeadlineAdapter(HTTPAdapter):
    """An adapter with one TLS context, whose answers arrive before a deadline or time out.

    The time-outs of requests apply to each read from the socket, so a server that sends a byte now
    and then holds a connection for ever. Reading the body in a stream against a deadline would not
    help: http.client reads all headers before it returns. The deadline is therefore set where
    http.client reads, in the file that it makes of the socket.

    Args:
        answer_timeout_s: The seconds from the end of the request to the last byte of the answer.
        max_connections: The largest number of connections to one host. Further requests wait.
        tls: The complete TLS context, or None for plain http.
    """

    def __init__(
        self, answer_timeout_s: float, max_connections: int, tls: ssl.SSLContext | None
    ) -> None:
        def open_response(sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:
            return HTTPResponse(_AnswerReader(sock, answer_timeout_s), *args, **kwargs)  # type: ignore[arg-type]

        self._connection_classes = {
            kind.__name__: type(
                kind.__name__, (kind,), {"response_class": staticmethod(open_response)}
            )
            for kind in (HTTPConnection, HTTPSConnection)
        }
        self._tls_options: dict[str, Any] = {}
        if tls is not None:
            reqs = "CERT_NONE" if tls.verify_mode is ssl.CERT_NONE else "CERT_REQUIRED"
            self._tls_options = {"ssl_context": tls, "cert_reqs": reqs}
        super().__init__(pool_maxsize=max_connections, pool_block=True)

    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, **self._tls_options)

    @override
    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **kwargs, **self._tls_options)

    @override
    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        kind = self._connection_classes[pool.ConnectionCls.__name__]
        pool.ConnectionCls = kind  # type: ignore[assignment]
        return pool

    @override
    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, True)
        return host, {}

    @override
    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing. requests would load certificates into the context for each connection,
        which is not safe while other threads use it."""


class _AnswerReader(io.RawIOBase):
    """Reads an answer from a socket until a deadline. `http.client` gets it in place of the socket,
    and only calls its `makefile`."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._file: Any = sock.makefile("rb", buffering=0)  # keeps the socket open until closed
        self._deadline = time.monotonic() + timeout_s

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int | None:
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the answer took too long")
        read_timeout_s = self._sock.gettimeout()
        self._sock.settimeout(min(remaining_s, read_timeout_s or remaining_s))
        return self._file.readinto(buffer)

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


class TlsFileError(Exception):
    """A declared file is missing or has the wrong content. The message names the file."""


def build_tls_context(tls: TlsDeclaration) -> ssl.SSLContext:
    """Build the context that all connections share. Nothing may be loaded into it later, since
    that is not safe with threads.

    It trusts the system's authorities (where a company adds its own), certifi's for systems that
    have none, and those that the environment and the declaration name.

    Raises:
        TlsFileError: A file is missing, or can't be used.
    """
    context = ssl.create_default_context()
    if tls.verify:
        context.load_verify_locations(certifi.where())
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # in the order of requests
            if path := os.environ.get(variable):
                _load_authorities(context, path, variable)
                break
        if tls.ca_bundle:
            _load_authorities(context, tls.ca_bundle, "tls.ca_bundle")
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.client_cert:
        _load_client_certificate(context, tls.client_cert, tls.client_key)
    return context


def _load_authorities(context: ssl.SSLContext, path: str, source: str) -> None:
    try:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(path)
    except OSError as error:  # also ssl.SSLError
        raise TlsFileError(f"{source} {path}: {_describe_error(error)}") from error


def _load_client_certificate(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    def refuse_password() -> str:
        # Without this, OpenSSL asks for the password on the terminal.
        raise TlsFileError(f"the key in {key or cert} is encrypted; give one without a password")

    try:
        context.load_cert_chain(cert, key, password=refuse_password)
    except OSError as error:
        files = f"tls.client_cert {cert}" + (f" and tls.client_key {key}" if key else "")
        raise TlsFileError(f"{files}: {_describe_error(error)}") from error


def _describe_error(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "no matching certificate and key in PEM format"
    return error.strerror or type(error).__name__


def is_proxy_usable(url: str) -> bool:
    """Return whether the proxy that the environment names for this address is an http address;
    True if it names none.

    requests and urllib3 quote an address that they can't parse in their errors, password included.
    """
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy is None:
        return True
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
