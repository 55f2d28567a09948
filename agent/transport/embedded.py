"""The embedded broker: MQTT 3.1.1 on loopback, for one machine and for tests.

It is amqtt's codec around ``agent.transport.exchange``. amqtt's own broker core is not used: version 0.12.1 forgets a
QoS 1 message when its receiver disconnects or takes longer than five seconds, sends a client retained messages of other
clients' subscriptions when it connects, publishes wills past the access rules, lets a client with a wrong password take
over a session, leaves the connection open whose session it gave to another one, and never closes one that fell silent.
``tests/transport/test_amqtt.py`` and the contract of links have these faults as failures that are expected.

A real community runs mosquitto or a clustered broker. Nothing is kept here when the process ends, so a hub publishes
its retained messages again whenever its link comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

from agent.errors import NetworkError, ProtocolError
from agent.transport import packets
from agent.transport.address import BrokerAddress
from agent.transport.exchange import Allowed, Attachment, Delivery, Exchange, Limits, Observer
from agent.transport.link import MAX_PACKET_BYTES

Authenticate: TypeAlias = Callable[[str, str], bool]
"""Is this the password of this user?"""

MAX_CLIENT_PACKET = MAX_PACKET_BYTES + 32 * 1024
MAX_CONNECTIONS = 2048
CONNECT_SECONDS = 10.0

_MAX_UNSENT = 8 * 1024 * 1024
_DEAF_SECONDS = 60.0
_GRACE = 1.5  # times the keepalive a client may be silent: MQTT 3.1.1 section 3.1.2.10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBroker:
    """Where the broker listens, and what it has seen."""

    host: str
    port: int
    exchange: Exchange

    @property
    def url(self) -> str:
        """The address for links on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{host}:{self.port}"


@contextlib.asynccontextmanager
async def run_broker(
    *,
    authenticate: Authenticate,
    allowed: Allowed,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits | None = None,
    observe: Observer | None = None,
    allow_plaintext: bool = False,
) -> AsyncIterator[RunningBroker]:
    """Run the broker while the context lasts.

    Args:
        authenticate: whether a user and password belong together.
        allowed: the access rules; ``agent.transport.access.allowed`` with the community filled in.
        host: where to listen; other machines only with ``allow_plaintext``.
        port: 0 picks a free one.
        limits: how much to keep for others.
        observe: told of every message that passes.
        allow_plaintext: whether to listen beyond this machine, unencrypted.

    Raises:
        PlaintextRefusedError: ``host`` is not this machine alone.
        NetworkError: the port is taken, or the address is not ours.
    """
    address = BrokerAddress(host=host, port=port, tls=False)
    address.require_privacy(allow_plaintext=allow_plaintext)
    exchange = Exchange(allowed=allowed, now=time.monotonic, limits=limits, observe=observe)
    door = _Door(exchange=exchange, authenticate=authenticate)
    try:
        server = await asyncio.start_server(door.welcome, host, port, limit=2 * MAX_CLIENT_PACKET)
    except OSError as error:
        raise NetworkError(
            f"The broker cannot listen at {address.shown}: {(error.strerror or str(error)).lower()}.",
            advice="Another broker may be running there already. Choose another port, or 0 for any free one.",
        ) from error
    try:
        yield RunningBroker(host=host, port=int(server.sockets[0].getsockname()[1]), exchange=exchange)
    finally:
        server.close()
        await door.shut()
        await server.wait_closed()


class _Door:
    """Takes connections in, and sees them out at the end."""

    def __init__(self, *, exchange: Exchange, authenticate: Authenticate) -> None:
        self._exchange = exchange
        self._authenticate = authenticate
        self._visits: set[asyncio.Task[None]] = set()
        self._shut = False

    def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut or len(self._visits) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        visit = _Visit(reader=reader, writer=writer, exchange=self._exchange, authenticate=self._authenticate)
        task = asyncio.create_task(visit.run())
        self._visits.add(task)
        task.add_done_callback(self._visits.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # even if it was cancelled before it began

    async def shut(self) -> None:
        self._shut = True
        for task in tuple(self._visits):
            task.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)


class _Visit:
    """One connection of one client."""

    def __init__(
        self,
        *,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exchange: Exchange,
        authenticate: Authenticate,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._exchange = exchange
        self._authenticate = authenticate
        self._orderly = False

    async def run(self) -> None:
        line = self._writer.get_extra_info("socket")
        if line is not None:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        attachment: Attachment | None = None
        try:
            connect = await self._greet()
            attachment = None if connect is None else self._attach(connect)
            if connect is not None and attachment is not None:
                await self._serve(attachment, connect.keepalive * _GRACE or None)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            _log.debug("a client is gone: %r", error)
        except ProtocolError as error:
            _log.info("a client is sent away: %s", error)
        finally:
            if attachment is not None:
                self._exchange.detach(attachment, orderly=self._orderly)
            await self._hang_up()

    async def _greet(self) -> packets.Connect | None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                packet = await packets.read_packet(self._reader, max_bytes=MAX_CLIENT_PACKET, opening=True)
        except packets.BadVersionError:
            self._send(packets.connack(packets.BAD_VERSION))
            return None
        if not isinstance(packet, packets.Connect):
            return None  # not reached: anything else was refused above
        if packet.user is None or packet.password is None or not self._authenticate(packet.user, packet.password):
            self._send(packets.connack(packets.BAD_CREDENTIALS))
            return None
        if not packet.client_id and not packet.clean:
            self._send(packets.connack(packets.BAD_CLIENT_ID))
            return None
        return packet

    def _attach(self, connect: packets.Connect) -> Attachment | None:
        assert connect.user is not None
        attachment = self._exchange.attach(
            user=connect.user,
            client_id=connect.client_id or secrets.token_hex(16),
            lasting=not connect.clean,
            will=connect.will,
            deliver=self._deliver,
            close=self._writer.transport.abort,
        )
        if attachment is None:
            self._send(packets.connack(packets.UNAVAILABLE))
            return None
        self._send(packets.connack(packets.ACCEPTED, resumed=attachment.resumed))
        self._exchange.resume(attachment)
        return attachment

    async def _serve(self, attachment: Attachment, silence: float | None) -> None:
        while not self._orderly:
            async with asyncio.timeout(silence):
                packet = await packets.read_packet(self._reader, max_bytes=MAX_CLIENT_PACKET)
            if attachment.session.attachment is not attachment:
                return  # taken over
            self._handle(attachment, packet)
            async with asyncio.timeout(silence or _DEAF_SECONDS):
                await self._writer.drain()

    def _handle(self, attachment: Attachment, packet: packets.Packet) -> None:
        exchange = self._exchange
        match packet:
            case packets.Publish(qos=0 | 1):
                exchange.publish(attachment.session.user, packet.topic, packet.payload, retain=packet.retain)
                if packet.packet_id is not None:
                    self._send(packets.puback(packet.packet_id))
            case packets.Puback():
                exchange.acknowledge(attachment, packet.packet_id)
            case packets.Subscribe():
                granted = [exchange.subscribe(attachment, *asked) for asked in packet.filters]
                codes = [packets.REFUSED_FILTER if qos is None else qos for qos in granted]
                self._send(packets.suback(packet.packet_id, codes))
                for topic_filter, _ in packet.filters:
                    exchange.send_retained(attachment, topic_filter)
            case packets.Unsubscribe():
                for topic_filter in packet.filters:
                    exchange.unsubscribe(attachment, topic_filter)
                self._send(packets.unsuback(packet.packet_id))
            case packets.Ping():
                self._send(packets.pingresp())
            case packets.Disconnect():
                self._orderly = True
            case _:  # a second CONNECT, or QoS 2, which nothing here uses
                raise ConnectionAbortedError

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.packet_id is None and self._writer.transport.get_write_buffer_size() > _MAX_UNSENT:
            return  # QoS 0 for a client that does not read
        self._send(packets.publish(delivery))

    def _send(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def _hang_up(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
