"""A web server before a fake Airflow: below a path, or with TLS as most servers do it, which tell a
client why they refuse it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from werkzeug import Request, Response
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.contract.fakes.airflow import FakeAirflow


class Front:
    """A WSGI application that asks the fake.

    Attributes:
        asked: The headers of all requests.
        sets: Headers that every answer has besides.
    """

    def __init__(self, server: FakeAirflow) -> None:
        self.url = ""
        self.asked: list[dict[str, str]] = []
        self.sets: dict[str, str] = {}
        self._server = server

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        self.asked.append(dict(request.headers))
        response = self._server.respond(request, 0) or Response(status=502)
        response.headers.update(self.sets)
        return response(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        """Nothing: what is asked here is asserted, not read."""


@contextmanager
def serve(
    app: Any, tls: ssl.SSLContext | None = None, *, has_one_worker: bool = False
) -> Iterator[str]:
    """The address at which a WSGI application answers; a connection per request."""
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
def front(
    server: FakeAirflow,
    path: str = "",
    tls: ssl.SSLContext | None = None,
    *,
    has_one_worker: bool = False,
) -> Iterator[Front]:
    """Serves the fake below the path, and nothing elsewhere.

    Args:
        has_one_worker: It does nothing else, no other handshake either, until an answer is sent:
            as each of gunicorn's workers, which Airflow 2 has four of.
    """
    app = Front(server)
    served = DispatcherMiddleware(NotFound(), {path: app}) if path else app
    with serve(served, tls, has_one_worker=has_one_worker) as url:
        app.url = url + path
        yield app
