"""What a fault proxy does to an answer, byte by byte."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards what is left, and says so


@dataclass
class Answer:
    """An answer that is there as a whole, and of which nothing was sent to the client yet."""

    head: bytes
    body: bytes
    client: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.client.write(data)
        await self.client.drain()

    async def send_first(self, count: int, *, in_body: bool) -> bytes:
        """What is left after so many bytes of the answer, or of its body."""
        count += len(self.head) if in_body else 0
        await self.send((self.head + self.body)[:count])
        return (self.head + self.body)[count:]


Fault = Callable[[Answer], Awaitable[None]]


def reset(after: int = 0, *, in_body: bool = False) -> Fault:
    """The connection breaks: RST, as from a host that crashed or a firewall."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        sock: socket.socket = answer.client.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        answer.client.transport.abort()

    return spoil


def close(after: int = 0, *, in_body: bool = False) -> Fault:
    """The connection ends in good order, but too early."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        answer.client.close()

    return spoil


def stall(after: int = 0, *, in_body: bool = False) -> Fault:
    """Nothing more comes, for ever."""

    async def spoil(answer: Answer) -> None:
        await answer.send_first(after, in_body=in_body)
        await asyncio.Event().wait()

    return spoil


def trickle(count: int, pause_s: float, *, in_body: bool = False) -> Fault:
    """So many bytes at a time, and a pause before each of them."""

    async def spoil(answer: Answer) -> None:
        rest = await answer.send_first(0, in_body=in_body)
        for start in range(0, len(rest), count):
            await asyncio.sleep(pause_s)
            await answer.send(rest[start : start + count])

    return spoil


def trickle_chunks(count: int, pause_s: float) -> Fault:
    """The body comes without a length, in chunks of so many bytes, and a pause before each."""

    async def spoil(answer: Answer) -> None:
        chunked = b"Transfer-Encoding: chunked"
        await answer.send(re.sub(rb"(?i)content-length: \d+", chunked, answer.head))
        for start in range(0, len(answer.body), count):
            chunk = answer.body[start : start + count]
            await asyncio.sleep(pause_s)
            await answer.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await answer.send(b"0\r\n\r\n")

    return spoil
