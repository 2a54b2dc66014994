"""A TCP proxy before a fake Airflow that damages answers byte by byte.

What a server can't do to its own answers: reset a connection, stall in the middle of a header,
trickle. It can also speak TLS for a server that does not, to clients that trust it: asyncio drops
the others without a word (see `front` for those).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards what is left, and says so


@dataclass
class Answer:
    """A whole answer, of which nothing was sent to the client yet."""

    head: bytes
    body: bytes
    client: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.client.write(data)
        await self.client.drain()

    async def send_first(self, count: int, *, in_body: bool) -> bytes:
        """Send so many bytes of the answer or its body, and return the rest."""
        count += len(self.head) if in_body else 0
        await self.send((self.head + self.body)[:count])
        return (self.head + self.body)[count:]


Fault = Callable[[Answer], Awaitable[None]]


def reset(after: int = 0, *, in_body: bool = False) -> Fault:
    """Reset the connection (RST), as a crashed host or a firewall does."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        sock: socket.socket = answer.client.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        answer.client.transport.abort()

    return spoil


def close(after: int = 0, *, in_body: bool = False) -> Fault:
    """Close the connection too early."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        answer.client.close()

    return spoil


def stall(after: int = 0, *, in_body: bool = False) -> Fault:
    """Send nothing more, for ever."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        await asyncio.Event().wait()

    return spoil


def trickle(count: int, pause_s: float, *, in_body: bool = False) -> Fault:
    """Send so many bytes at a time, with a pause before each."""

    async def spoil(answer: Answer) -> None:
        rest = await answer.send_first(0, in_body=in_body)
        for start in range(0, len(rest), count):
            await asyncio.sleep(pause_s)
            await answer.send(rest[start : start + count])

    return spoil


def trickle_chunks(count: int, pause_s: float) -> Fault:
    """Send the body in chunks of so many bytes, with a pause before each."""

    async def spoil(answer: Answer) -> None:
        chunked = b"Transfer-Encoding: chunked"
        await answer.send(re.sub(rb"(?i)content-length: \d+", chunked, answer.head))
        for start in range(0, len(answer.body), count):
            chunk = answer.body[start : start + count]
            await asyncio.sleep(pause_s)
            await answer.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await answer.send(b"0\r\n\r\n")

    return spoil


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_answer_due: bool = False
    fault: Fault | None = None


class FaultProxy:
    """A proxy on a free port, from `start()` (or `with`) to `stop()`.

    Args:
        upstream: The address of what is behind it.
        host: Where it listens: 127.0.0.1 or ::1.
        tls: How it proves who it is; none for plain HTTP.

    Attributes:
        total: Connections so far.
        peak: The most connections at a time.
        received: All that clients sent.
    """

    def __init__(
        self, upstream: str, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.total = self.peak = 0
        self.received = bytearray()
        self._upstream = urlsplit(upstream)
        self._host, self._port, self._tls = host, 0, tls
        self._planned: list[tuple[re.Pattern[bytes], Fault]] = []
        self._standing: list[tuple[re.Pattern[bytes], Fault]] = []
        self._lock = Lock()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = Thread(target=lambda: asyncio.run(self._run()))

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def fail_next(self, fault: Fault, pattern: str = "", times: int = 1) -> None:
        """Damage the next answers to requests whose first line matches a pattern."""
        with self._lock:
            self._planned += [(re.compile(pattern.encode()), fault)] * times

    def fail_all(self, fault: Fault, pattern: str = "") -> None:
        """Damage all answers to such requests, until `mend()`."""
        with self._lock:
            self._standing.append((re.compile(pattern.encode()), fault))

    def mend(self) -> None:
        """Let answers pass again. Those that stall go on stalling."""
        with self._lock:
            self._planned.clear()
            self._standing.clear()

    def refuse(self) -> None:
        """Stop listening, and close all connections."""
        self._call(self._refuse())

    def listen(self) -> None:
        """Listen again on the same port."""
        self._call(self._listen())

    def close_idle(self) -> None:
        """Close the connections that clients keep open for their next request."""
        self._call(self._close_idle())

    def start(self) -> None:
        self._thread.start()
        self._started.result(60)

    def stop(self) -> None:
        self._started.result().call_soon_threadsafe(self._stopped.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _call(self, command: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(command, self._started.result()).result(60)

    async def _run(self) -> None:
        self._stopped = asyncio.Event()
        try:
            await self._listen()
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(asyncio.get_running_loop())
        await self._stopped.wait()
        await self._refuse()
        for _ in range(10):  # the loop closes what was closed in its next turns
            await asyncio.sleep(0)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, self._host, self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.writer.transport.abort()
        await self._end(self._tasks)

    async def _close_idle(self) -> None:
        for connection in list(self._connections):
            if not connection.is_answer_due:
                connection.writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer)
        self._connections.add(connection)
        self.total += 1
        # Those whose client has hung up are on their way out.
        self.peak = max(self.peak, sum(not other.reader.at_eof() for other in self._connections))
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection) -> None:
        """Pass data both ways until one side closes."""
        host, port = self._upstream.hostname, self._upstream.port
        ways: list[asyncio.Task[None]] = []
        try:
            reader, writer = await asyncio.open_connection(host, port)
            try:
                loop = asyncio.get_running_loop()
                ways.append(loop.create_task(self._pass_requests(connection, writer)))
                ways.append(loop.create_task(self._pass_answers(connection, reader)))
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                writer.close()
        except OSError:
            connection.writer.transport.abort()
        finally:
            connection.writer.close()
            self._connections.discard(connection)
            await self._end(ways)

    @staticmethod
    async def _end(tasks: Any) -> None:
        for task in (ended := list(tasks)):
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def _pass_requests(self, connection: _Connection, server: asyncio.StreamWriter) -> None:
        while data := await connection.reader.read(65536):
            self.received += data
            if not connection.is_answer_due:
                connection.is_answer_due, connection.fault = True, self._choose_fault(data)
            server.write(data)
            await server.drain()

    async def _pass_answers(self, connection: _Connection, server: asyncio.StreamReader) -> None:
        while data := await server.read(65536):
            if connection.fault is None:
                connection.is_answer_due = False
                connection.writer.write(data)
                await connection.writer.drain()
            else:
                answer = await self._read_answer(data, server, connection.writer)
                await connection.fault(answer)
                connection.is_answer_due, connection.fault = False, None

    async def _read_answer(
        self, data: bytes, server: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> Answer:
        if b"\r\n\r\n" not in data:
            data += await server.readuntil(b"\r\n\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None, "only an answer with a length can be spoiled"
        body += await server.readexactly(int(length[1]) - len(body))
        return Answer(head + b"\r\n\r\n", body, client)

    def _choose_fault(self, request: bytes) -> Fault | None:
        with self._lock:
            for planned in self._planned:
                if planned[0].match(request):
                    self._planned.remove(planned)
                    return planned[1]
            return next(
                (fault for pattern, fault in self._standing if pattern.match(request)), None
            )
