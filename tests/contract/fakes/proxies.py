"""A reverse proxy before a fake Airflow, and a forward proxy before a client."""

from __future__ import annotations

import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, cast
from urllib.parse import urlsplit

from werkzeug import Request, Response
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.contract.fakes.airflow import FakeAirflow


class ReverseProxy:
    """A WSGI application that forwards requests to a fake Airflow.

    Attributes:
        requests: The headers of all requests.
        sets: Headers that every answer has besides.
    """

    def __init__(self, server: FakeAirflow) -> None:
        self.url = ""
        self.requests: list[dict[str, str]] = []
        self.sets: dict[str, str] = {}
        self._server = server

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        self.requests.append(dict(request.headers))
        response = self._server.respond(request, 0) or Response(status=502)
        response.headers.update(self.sets)
        return response(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        """Log nothing."""


@contextmanager
def serve(
    app: Any, tls: ssl.SSLContext | None = None, *, has_one_worker: bool = False
) -> Iterator[str]:
    """Serve a WSGI application, a connection per request, and give its address."""
    listening = make_server(
        "127.0.0.1", 0, app, threaded=not has_one_worker, request_handler=_Quiet
    )
    # Clients that it refuses hang up on it.
    listening.handle_error = lambda request, client_address: None  # noqa: ARG005 - as its base
    if tls is not None:
        listening.socket = tls.wrap_socket(
            listening.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.port}"
    finally:
        listening.shutdown()
        thread.join(10)
        listening.server_close()


@contextmanager
def start_reverse_proxy(
    server: FakeAirflow,
    path: str = "",
    tls: ssl.SSLContext | None = None,
    *,
    has_one_worker: bool = False,
) -> Iterator[ReverseProxy]:
    """Serve a fake Airflow below a path, and nothing elsewhere.

    Args:
        has_one_worker: It does nothing else, no other handshake either, until an answer is sent:
            as each of gunicorn's workers, which Airflow 2 has four of.
    """
    app = ReverseProxy(server)
    served = DispatcherMiddleware(NotFound(), {path: app}) if path else app
    with serve(served, tls, has_one_worker=has_one_worker) as url:
        app.url = url + path
        yield app


_NOT_PASSED_ON = {"connection", "proxy-authorization", "proxy-connection"}


class ForwardProxy(ThreadingHTTPServer):
    """On a free port of 127.0.0.1.

    Attributes:
        account: Name and password, with a colon between, that it wants; None if it wants none.
        stalls: It takes requests and does nothing about them.
        requests: The first lines of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.account: str | None = None
        self.stalls = False
        self.ended = Event()
        self.requests: list[str] = []

    def build_url(self, account: str = "") -> str:
        return f"http://{account}{'@' if account else ''}127.0.0.1:{self.server_port}"


@contextmanager
def start_forward_proxy() -> Iterator[ForwardProxy]:
    with ForwardProxy() as proxy:
        thread = Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base
        """Log nothing."""

    def do_CONNECT(self) -> None:
        if not self._may_pass():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 5) as target:
            self.send_response(200)
            self.end_headers()
            back = Thread(target=_pump, args=(target.recv, self.connection.sendall))
            back.start()
            _pump(self.rfile.read1, target.sendall)  # type: ignore[attr-defined]
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            back.join(10)
        self.close_connection = True

    def do_GET(self) -> None:
        if not self._may_pass():
            return
        target = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_PASSED_ON}
        onward = HTTPConnection(target.hostname or "", target.port, timeout=5)
        onward.request(self.command, target._replace(scheme="", netloc="").geturl(), body, headers)
        answer = onward.getresponse()
        content = answer.read()
        onward.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() != "connection":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def _may_pass(self) -> bool:
        proxy = cast("ForwardProxy", self.server)
        proxy.requests.append(self.requestline)
        if proxy.stalls:
            proxy.ended.wait(30)
            self.close_connection = True
            return False
        wanted = proxy.account and f"Basic {b64encode(proxy.account.encode()).decode()}"
        if wanted == (self.headers["Proxy-Authorization"] if wanted else None):
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


def _pump(read: Callable[[int], bytes], write: Callable[[bytes], object]) -> None:
    with suppress(OSError):
        while data := read(65536):
            write(data)
