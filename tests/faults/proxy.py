"""A proxy between one MQTT client and its broker that does to their messages what a plan says."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.faults.plan import Direction, Fault
from tests.integration.packets import CONNECT, PUBLISH, PacketStream, Publish, Version, kind, puback, read_publish

HOLD_SECONDS = 0.3
"""How long a message waits at most for those that are to overtake it."""

READ_BYTES = 65_536


@dataclass(eq=False)
class _Connection:
    """One client's line to the broker, both ways."""

    writers: dict[Direction, asyncio.StreamWriter]
    """To whom each direction leads."""
    version: Version = field(default_factory=Version)
    held: dict[Direction, list[tuple[int, bytes]]] = field(default_factory=lambda: {"to-broker": [], "to-client": []})
    """Packets that others overtake: how many still, and the packet."""

    def close(self) -> None:
        """Break it, both ways, at once."""
        for writer in self.writers.values():
            writer.transport.abort()


class FaultProxy:
    """Listens on loopback for one client. A context manager.

    Args:
        upstream: the broker's port on loopback.
        faults: what to do on this client's wire; each happens once.
        happened: told of every fault that came about.
    """

    def __init__(self, *, upstream: int, faults: Sequence[Fault], happened: Callable[[Fault], None]) -> None:
        self._upstream = upstream
        self._left = list(faults)
        self._happened = happened
        self._messages: Counter[Direction] = Counter()
        self._bytes: Counter[Direction] = Counter()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._welcome, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._server.close()
        while self._tasks:  # one may be on its way to the broker still
            for connection in tuple(self._connections):
                connection.close()
            await asyncio.wait(self._tasks, timeout=0.1)

    @property
    def url(self) -> str:
        """The way through it."""
        return f"mqtt://127.0.0.1:{self.port}"

    # --- lines -------------------------------------------------------------------------------------------------

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection of the client to the broker, until either end closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        connection = _Connection({"to-broker": far_writer, "to-client": writer})
        self._connections.add(connection)
        ways = [
            asyncio.create_task(self._pump(reader, "to-broker", connection)),
            asyncio.create_task(self._pump(far_reader, "to-client", connection)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            connection.close()
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, direction: Direction, connection: _Connection) -> None:
        packets = PacketStream()
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                for packet in packets.feed(data):
                    await self._pass(packet, direction, connection)
                await connection.writers[direction].drain()

    # --- packets -----------------------------------------------------------------------------------------------

    async def _pass(self, packet: bytearray, direction: Direction, connection: _Connection) -> None:
        """Pass a packet on, or do to it what its turn has come for."""
        if kind(packet) == CONNECT:
            connection.version.learn(packet)
        if kind(packet) != PUBLISH:
            self._write(bytes(packet), direction, connection)
            return
        self._messages[direction] += 1
        publish = read_publish(packet, connection.version.number)
        fault = self._due(direction)
        if fault is None:
            self._write(bytes(packet), direction, connection)
        else:
            self._happened(fault)
            await self._do(fault, packet, publish, connection)
        self._overtaken(direction, connection)

    def _due(self, direction: Direction) -> Fault | None:
        """Give the fault whose message this is, if any; it happens once."""
        for fault in self._left:
            if fault.kind != "cut" and fault.direction == direction and fault.at <= self._messages[direction]:
                self._left.remove(fault)
                return fault
        return None

    async def _do(self, fault: Fault, packet: bytearray, publish: Publish, connection: _Connection) -> None:
        direction = fault.direction
        match fault.kind:
            case "drop":
                back = connection.writers["to-client" if direction == "to-broker" else "to-broker"]
                if publish.packet_id:
                    back.write(puback(publish.packet_id))
            case "lose":
                pass
            case "duplicate":
                self._write(bytes(packet) * 2, direction, connection)
            case "reorder":
                connection.held[direction].append((fault.extra + 1, bytes(packet)))
                asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release, direction, connection)
            case "corrupt" | "garble":
                first = publish.payload_at if fault.kind == "corrupt" else 0
                if first < len(packet):
                    packet[first + fault.extra // 8 % (len(packet) - first)] ^= 1 << fault.extra % 8
                self._write(bytes(packet), direction, connection)
            case "delay":
                await asyncio.sleep(fault.seconds)
                self._write(bytes(packet), direction, connection)
            case "stall":
                await asyncio.sleep(fault.seconds)
                connection.close()
            case _:
                raise AssertionError(f"{fault.kind} does not happen on the wire")

    def _overtaken(self, direction: Direction, connection: _Connection) -> None:
        """One more message has passed: let those go that have waited for enough."""
        waiting = [(left - 1, packet) for left, packet in connection.held[direction]]
        connection.held[direction] = [(left, packet) for left, packet in waiting if left > 0]
        for left, packet in waiting:
            if left <= 0:
                self._write(packet, direction, connection)

    def _release(self, direction: Direction, connection: _Connection) -> None:
        """Let everything go that waits."""
        waiting, connection.held[direction] = connection.held[direction], []
        for _left, packet in waiting:
            self._write(packet, direction, connection)

    def _write(self, data: bytes, direction: Direction, connection: _Connection) -> None:
        """Send bytes on, up to the one after which the connection is to break."""
        writer = connection.writers[direction]
        if writer.is_closing():
            return
        before = self._bytes[direction]
        self._bytes[direction] += len(data)
        for fault in self._left:
            if fault.kind == "cut" and fault.direction == direction and fault.at <= self._bytes[direction]:
                self._left.remove(fault)
                self._happened(fault)
                writer.write(data[: max(0, fault.at - before)])
                asyncio.get_running_loop().call_soon(connection.close)
                return
        writer.write(data)
