"""Connections whose answers have a deadline as a whole.

What requests and urllib3 call a read time-out is the pause between two bytes: an answer that
trickles in, a byte a second, never ends. Here the socket itself knows when the answer is due.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from http.client import HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class TimedAdapter(HTTPAdapter):
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
