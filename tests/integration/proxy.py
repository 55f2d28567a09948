"""A proxy between MQTT clients and their broker that sees every byte, and can change one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from tests.integration.packets import CONNECT, PUBLISH, PacketStream, Version, kind, read_publish

Direction: TypeAlias = Literal["to-broker", "to-client"]


@dataclass(frozen=True, slots=True)
class Passed:
    """A PUBLISH that passed."""

    direction: Direction
    topic: str
    payload: bytes


Change: TypeAlias = Callable[[Passed], bytes]
"""Gives the payload to pass on, of the same length."""


@dataclass
class Wiretap:
    """Listens on loopback, passes everything on to a broker, and remembers all of it.

    Args:
        upstream: the broker's port on loopback.
        change: may change the payload of a message.
    """

    upstream: int
    change: Change = field(default=lambda passed: passed.payload)
    passed: list[Passed] = field(default_factory=list)
    streams: list[bytearray] = field(default_factory=list)
    """All bytes of every connection and direction, headers and credentials included."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._closing = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._start(self._welcome)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with self._lock:
            open_sockets = list(self._sockets)
        for line in open_sockets:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for line in open_sockets:
            line.close()

    @property
    def url(self) -> str:
        """The way through it, with credentials for a broker that wants some and takes any."""
        return f"mqtt://everybody:open@127.0.0.1:{self.port}"

    def messages(self) -> list[Passed]:
        """Everything published so far, once for every leg of its way."""
        with self._lock:
            return list(self.passed)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _welcome(self) -> None:
        while not self._closing:
            try:
                client, _address = self._door.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(("127.0.0.1", self.upstream), timeout=10)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            version = Version()
            with self._lock:
                self._sockets |= {client, broker}
            self._start(self._pump, client, broker, "to-broker", version)
            self._start(self._pump, broker, client, "to-client", version)

    def _pump(self, source: socket.socket, target: socket.socket, direction: Direction, version: Version) -> None:
        stream = bytearray()
        with self._lock:
            self.streams.append(stream)
        packets = PacketStream()
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                stream += data
                for packet in packets.feed(data):
                    target.sendall(self._pass(packet, direction, version))
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _pass(self, packet: bytearray, direction: Direction, version: Version) -> bytes:
        if kind(packet) == CONNECT:
            version.learn(packet)
        if kind(packet) != PUBLISH:
            return bytes(packet)
        publish = read_publish(packet, version.number)
        start = publish.payload_at
        seen = Passed(direction, publish.topic, bytes(packet[start:]))
        with self._lock:
            self.passed.append(seen)
            payload = self.change(seen)
        assert len(payload) == len(seen.payload)
        packet[start:] = payload
        return bytes(packet)
