"""A broker that keeps to nothing: it lets everybody in, and then does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

CONNACK = b"\x20\x02\x00\x00"
"""Of MQTT 3.1.1: come in."""


def publish(topic: str, payload: bytes, *, mid: int | None = None, qos: int = 1) -> bytes:
    """Give a PUBLISH packet; with an id where its QoS has one."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + (b"" if mid is None else mid.to_bytes(2, "big")) + payload
    return bytes([0x30 | (qos << 1 if mid is not None else 0)]) + length(len(body)) + body


def length(size: int) -> bytes:
    """Give MQTT's variable length."""
    found = bytearray()
    while True:
        size, low = divmod(size, 128)
        found.append(low | (0x80 if size else 0))
        if not size:
            return bytes(found)


@dataclass
class Hostile:
    """Where it listens, and how often somebody came."""

    port: int = 0
    visits: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def until(self, visits: int) -> None:
        async with asyncio.timeout(60):
            while self.visits < visits:
                self.news.clear()
                await self.news.wait()


Deed = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def hostile(deed: Deed, *, greet: bool = True) -> AsyncIterator[Hostile]:
    """Do ``deed`` to everybody who connects, after CONNACK, and close."""
    found = Hostile()
    visits: set[asyncio.Task[None]] = set()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        visits.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if greet:
                    await reader.read(4096)
                    writer.write(CONNACK)
                    await writer.drain()
                found.visits += 1
                found.news.set()
                await deed(reader, writer)
        finally:
            visits.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    found.port = int(server.sockets[0].getsockname()[1])
    try:
        yield found
    finally:
        server.close()
        for task in tuple(visits):
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
