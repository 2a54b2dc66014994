"""A fake Airflow in this process, with `/api/v1` as in 2.11.2 or `/api/v2` as in 3.3.2."""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock, Thread
from types import TracebackType
from typing import Any, cast

from typing_extensions import Self
from werkzeug import Request, Response
from werkzeug.http import http_date
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.contract.fakes.database import Database
from tests.contract.fakes.endpoints import Endpoints, RefusedError, build_json
from tests.contract.fakes.faults import Fault

USERNAME = "federation"
VIEWER = "viewer"  # who may read, and no more
PASSWORD = "open-sesame"


@dataclass(frozen=True)
class ReceivedRequest:
    """A request that arrived.

    Attributes:
        path: From the API's prefix on.
        connection: The client's port: one per connection.
    """

    method: str
    path: str
    query: dict[str, str]
    connection: int


Predicate = Callable[[ReceivedRequest], bool]


def asks(method: str, pattern: str) -> Predicate:
    """Return a predicate for requests with this method and a path that matches."""
    return lambda received: (
        received.method == method and re.fullmatch(pattern, received.path) is not None
    )


class FakeAirflow:
    """A server on 127.0.0.1, from `start()` (or `with`) to `stop()`.

    Args:
        port: A free one if it is 0.

    Attributes:
        api: "v1" or "v2"; changed by an upgrade.
        database: What it has, and where things are made to happen.
        all_endpoints: How it answers, by API.
        turns: The APIs that answer the next requests, as in the midst of an upgrade behind a
            balancer; after them, `api` does.
        has_public_role: As 2.x comes: who is not known has the role Public, which may do nothing,
            so that a wrong password is 403; without it, 401.
        password: Of both accounts; a changed one holds from the next sign-in on.
        takes_tokens: As some hosts' 2.x do: a token signs in there too.
        gateway: What somebody in front of it answers to all who are not signed in, whatever they
            ask for; None if there is nobody.
        requests: All requests so far.
    """

    def __init__(self, api: str, port: int = 0) -> None:
        self.api = api
        self.turns: deque[str] = deque()
        self.database = Database()
        self.all_endpoints = {name: Endpoints(name, self.database) for name in ("v1", "v2")}
        self.has_public_role = True
        self.password = PASSWORD
        self.takes_tokens = False
        self.gateway: Callable[[], Response] | None = None
        self.requests: list[ReceivedRequest] = []
        self.connections: set[socket.socket] = set()
        self._secret = 1
        self._faults: list[tuple[Predicate, Fault]] = []
        self._lock = Lock()
        self._server: BaseWSGIServer | None = None
        self._thread: Thread | None = None
        self._port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of the current API."""
        return self.all_endpoints[self.api]

    @property
    def token(self) -> str:
        """The only valid token of the first account."""
        return self._build_token(USERNAME)

    def _build_token(self, username: str) -> str:
        return f"token-{self._secret}-of-{username}"

    def start(self) -> None:
        """Start to listen, after a `stop()` on the same port."""
        app = cast("Any", self)  # no WSGI application: `_Handler` knows what it is
        server = make_server("127.0.0.1", self._port, app, True, request_handler=_Handler)
        self._server, self._port = server, server.port
        self._thread = Thread(target=server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and refuse new ones. The database stays."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._server = self._thread = None
        for connection in list(self.connections):
            with suppress(OSError):  # the client closed it just now
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def fail_next(self, predicate: Predicate, fault: Fault, times: int = 1) -> None:
        """Let the next requests of a kind fail."""
        with self._lock:
            self._faults += [(predicate, fault)] * times

    def forget_faults(self) -> None:
        """Cancel all planned faults."""
        with self._lock:
            self._faults.clear()

    def change_secret(self) -> None:
        """Invalidate all tokens issued so far."""
        self._secret += 1

    def count(self, method: str, pattern: str) -> int:
        """Return the number of such requests."""
        return sum(map(asks(method, pattern), list(self.requests)))

    def respond(self, request: Request, connection: int) -> Response | None:
        """Answer a request, or let a fault do so."""
        with self._lock:
            api = self.turns.popleft() if self.turns else self.api
            path = request.path.removeprefix(f"/api/{api}")
            received = ReceivedRequest(request.method, path, request.args.to_dict(), connection)
            self.requests.append(received)
            planned = next((fault for fault in self._faults if fault[0](received)), None)
            if planned is not None:
                self._faults.remove(planned)
        return planned[1](lambda: self._act(api, request)) if planned else self._act(api, request)

    def _act(self, api: str, request: Request) -> Response:
        with self.database.lock:
            now = self.database.now()
            if self.gateway is not None and self._find_account(api, request) is None:
                response = self.gateway()
            elif api == "v2" and (request.method, request.path) == ("POST", "/auth/token"):
                response = self._make_token(request)
            else:
                response = self.all_endpoints[api].answer(request, partial(self._check, api))
        response.headers["Date"] = http_date(now)
        return response

    def _make_token(self, request: Request) -> Response:
        for username in (USERNAME, VIEWER):
            if request.get_json() == {"username": username, "password": self.password}:
                return build_json({"access_token": self._build_token(username)}, 201)
        refused = RefusedError(401, "Invalid credentials")
        return self.all_endpoints["v2"].build_refusal(refused)

    def _find_account(self, api: str, request: Request) -> str | None:
        """Return the name of the signed-in account."""
        given = request.headers.get("Authorization", "")
        for username in (USERNAME, VIEWER):
            account = b64encode(f"{username}:{self.password}".encode()).decode()
            has_token = given == f"Bearer {self._build_token(username)}"
            if has_token and (api == "v2" or self.takes_tokens):
                return username
            if api == "v1" and given == f"Basic {account}":
                return username
        return None

    def _check(self, api: str, request: Request) -> None:
        username = self._find_account(api, request)
        if username is None and api == "v1" and self.has_public_role:
            raise RefusedError(403, None, "Forbidden")
        if username is None and api == "v1":
            raise RefusedError(401, None, "Unauthorized")
        if username is None and request.headers.get("Authorization", "").startswith("Bearer "):
            raise RefusedError(403, "Invalid JWT token")
        if username is None:
            raise RefusedError(401, "Not authenticated")
        if username == VIEWER and request.method != "GET":
            raise RefusedError(403, "Forbidden" if api == "v2" else None, "Forbidden")


class _Handler(WSGIRequestHandler):
    """Keeps connections open as 3.x does, or closes them as 2.x and werkzeug do."""

    def setup(self) -> None:
        super().setup()
        self._airflow.connections.add(self.connection)

    def finish(self) -> None:
        self._airflow.connections.discard(self.connection)
        super().finish()

    def run_wsgi(self) -> None:
        request = Request(self.make_environ())
        request.get_data()  # else it would be taken for the next request's beginning
        response = self._airflow.respond(request, self.client_address[1])
        self.close_connection = response is None or self._airflow.api == "v1"
        if response is None:
            return
        response.headers["Connection"] = "close" if self.close_connection else "keep-alive"
        if response.is_streamed:
            self._stream(response)
            return
        body = response.get_data()
        response.headers["Content-Length"] = str(len(body))
        head = f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1")
        self.wfile.write(head + body)  # at once: the second of two writes would wait for 40 ms

    def _stream(self, response: Response) -> None:
        """Send a body as it is made, in chunks."""
        response.headers["Transfer-Encoding"] = "chunked"
        self.wfile.write(f"HTTP/1.1 {response.status}\r\n{response.headers}".encode("latin-1"))
        for part in response.iter_encoded():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    @property
    def _airflow(self) -> FakeAirflow:
        return cast("FakeAirflow", self.server.app)
