"""paho's client with its thread, in a form that an event loop can live with.

paho runs its network loop in a thread of its own; what happens there is posted to the event loop as typed events.
Three things are done for paho: it is never handed a packet while the connection is down (it would send it ahead of
CONNECT), a message is never acknowledged on another connection than the one it came by (packet ids are used again), and
the waiting time between two attempts is drawn at random from 0 up to a bound that doubles ("full jitter"), so that a
fleet does not storm back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.transport.address import BrokerAddress
from agent.transport.link import Message, Presence
from agent.transport.refusals import NO_ANSWER

RECEIVE_MAXIMUM = 20
"""Messages the broker may have unacknowledged towards us (MQTT 5)."""

MAX_INCOMING_BYTES = 128 * 1024
"""The largest packet the broker is asked to send (MQTT 5)."""

_FAREWELL_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who connects, and how; see ``MqttLink``."""

    client_id: str
    username: str | None
    password: str | None
    session_seconds: int
    max_inflight: int
    keepalive: int
    connect_seconds: float
    ca_file: Path | None
    backoff: tuple[float, float]


class Events(Protocol):
    """What is told to the event loop, in its own thread and in the order it happened."""

    def is_up(self, limit: int) -> None:
        """The broker took us in and wants at most ``limit`` publishes in flight."""

    def is_refused(self, code: int) -> None:
        """The broker did not take us in: a reason code of MQTT 5, or ``NO_ANSWER``."""

    def is_down(self, why: str) -> None:
        """The connection broke."""

    def is_published(self, mid: int, refusal: str | None) -> None:
        """A publish was acknowledged, or refused."""

    def is_subscribed(self, mid: int, *, granted: bool) -> None:
        """A subscription was answered."""

    def has_arrived(self, message: Message) -> None:
        """A message came."""


class PahoClient:
    """One paho client for one version of MQTT.

    Args:
        address: where to go.
        credentials: as whom.
        version: 5, or 4 for 3.1.1.
        presence: what to say about being there; asked in paho's thread before each attempt.
        events: who is told.
        loop: where it is told.
    """

    def __init__(
        self,
        *,
        address: BrokerAddress,
        credentials: Credentials,
        version: Literal[5, 4],
        presence: Callable[[], Presence | None],
        events: Events,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._version = version
        self._presence = presence
        self._events = events
        self._loop = loop
        self._gate = threading.Lock()  # what follows is shared by the two threads
        self._up = False
        self._settled = False  # whether there ever was a connection
        self._connection = 0
        self._attempts = 0
        self._armed: Presence | None = None
        self._client = self._make()

    @property
    def up(self) -> bool:
        """Whether the connection stands."""
        return self._up

    @property
    def armed(self) -> Presence | None:
        """The presence whose will this connection carries."""
        return self._armed

    # -- life ---------------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Open the socket and send CONNECT; blocks, so it belongs in a thread. Then ``start``.

        Raises:
            OSError: nobody answers there, or TLS does not agree.
        """
        extra: dict[str, Any] = {}
        if self._version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_INCOMING_BYTES
            if self._credentials.session_seconds:
                properties.SessionExpiryInterval = self._credentials.session_seconds
            extra = {"properties": properties, "clean_start": not self._credentials.session_seconds}
        self._client.connect(self._address.host, self._address.port, self._credentials.keepalive, **extra)

    def start(self) -> None:
        """Start paho's thread."""
        self._client.loop_start()

    async def stop(self) -> None:
        """End paho's thread and close its sockets, however the connection stands."""
        with self._gate:
            self._up = False
        self._client.disconnect()
        ending = asyncio.ensure_future(asyncio.to_thread(self._client.loop_stop))
        while True:
            await asyncio.wait({ending}, timeout=_FAREWELL_SECONDS)
            if ending.done():
                break
            self._client.disconnect()  # it was connecting at that moment, or the broker does not read: cut the line
            self.cut()
        await ending
        self._client.reinitialise()  # closes what loop_stop leaves open

    def cut(self) -> None:
        """Break the connection under paho, which then sees a lost one and mends it."""
        line = self._client.socket()
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    # -- sending; each gives None while the connection is down --------------------------------------------------------

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Publish with QoS 1; gives the id that ``is_published`` will name. paho sends it again over any break."""
        with self._gate:
            if not self._up:
                return None
            info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_NO_CONN):  # without connection paho keeps it
            raise RuntimeError(f"paho did not take a message: {paho.error_string(info.rc)}")
        return int(info.mid)

    def subscribe(self, filters: list[str]) -> int | None:
        """Subscribe with QoS 1; gives the id that ``is_subscribed`` will name, unless the connection breaks first."""
        with self._gate:
            if not self._up:
                return None
            code, mid = self._client.subscribe([(topic_filter, 1) for topic_filter in filters])
        return int(mid) if code == paho.MQTT_ERR_SUCCESS else None

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe, without waiting for the answer."""
        with self._gate:
            if self._up:
                self._client.unsubscribe(topic_filter)

    def _acknowledge(self, connection: int, mid: int) -> None:
        with self._gate:
            if self._up and self._connection == connection:
                self._client.ack(mid, 1)

    # -- in paho's thread ---------------------------------------------------------------------------------------------

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    def _on_pre_connect(self, client: Any, _userdata: object) -> None:
        armed = self._presence()
        with self._gate:
            self._up = False
            self._connection += 1
            self._armed = armed
        if armed is not None:
            client.will_set(armed.topic, armed.will, qos=1, retain=True)

    def _on_connect(self, client: Any, _userdata: object, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._wait_or_give_up(client)
            self._post(self._events.is_refused, int(reason.value))
            return
        most = self._credentials.max_inflight
        limit = min(most, int(getattr(properties, "ReceiveMaximum", most)))
        with self._gate:
            self._attempts = 0
            self._up = self._settled = True
        self._post(self._events.is_up, limit)

    def _on_connect_fail(self, client: Any, _userdata: object) -> None:
        self._wait_longer(client)

    def _on_disconnect(self, client: Any, _userdata: object, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._gate:
            was_up, self._up = self._up, False
            self._connection += 1
        self._wait_or_give_up(client)
        if was_up:
            self._post(self._events.is_down, str(reason))
        else:
            self._post(self._events.is_refused, NO_ANSWER)

    def _on_message(self, _client: Any, _userdata: object, received: Any) -> None:
        connection, mid, qos = self._connection, int(received.mid), int(received.qos)
        try:
            topic = str(received.topic)
        except UnicodeDecodeError:
            return  # not acknowledged: no conforming broker sends it
        message = Message(
            topic=topic,
            payload=bytes(received.payload),
            retained=bool(received.retain),
            _acknowledge=lambda: self._acknowledge(connection, mid) if qos else None,
        )
        self._post(self._events.has_arrived, message)

    def _on_publish(self, _client: Any, _userdata: object, mid: int, reason: Any, _properties: Any) -> None:
        self._post(self._events.is_published, mid, str(reason) if reason.is_failure else None)

    def _on_subscribe(self, _client: Any, _userdata: object, mid: int, reasons: Any, _properties: Any) -> None:
        granted = not any(reason.is_failure for reason in reasons)
        self._post(lambda: self._events.is_subscribed(mid, granted=granted))

    def _wait_or_give_up(self, client: Any) -> None:
        if self._settled:
            self._wait_longer(client)
        else:  # the first connection is tried once, and whoever opens the link is told
            client.disconnect()

    def _wait_longer(self, client: Any) -> None:
        """Draw how long paho waits before its next attempt (full jitter: Brooker, 2015)."""
        first, most = self._credentials.backoff
        bound = min(most, first * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        delay = random.uniform(0.0, bound)  # noqa: S311 - spreads load, guards nothing
        client.reconnect_delay_set(delay, delay)

    # -- making it ----------------------------------------------------------------------------------------------------

    def _make(self) -> Any:
        credentials = self._credentials
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=credentials.client_id,
            protocol=paho.MQTTv5 if self._version == 5 else paho.MQTTv311,
            clean_session=None if self._version == 5 else not credentials.session_seconds,
            manual_ack=True,
        )
        client.connect_timeout = credentials.connect_seconds
        client.max_inflight_messages_set(credentials.max_inflight)
        client.suppress_exceptions = True  # an exception in a callback would end paho's thread
        client.username_pw_set(credentials.username, credentials.password)
        if self._address.tls:
            context = ssl.create_default_context(cafile=credentials.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.sslsocket_class = _TlsSocket
            client.tls_set_context(context)
        client.on_log = _report
        client.on_socket_open = _send_at_once
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.reconnect_delay_set(*credentials.backoff)
        return client


class _TlsSocket(ssl.SSLSocket):
    """A socket that is closed when the two sides do not agree; paho leaves it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - its signature
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _report(_client: Any, _userdata: object, _level: int, text: str) -> None:
    if "xception" in text:
        _log.error("paho: %s", text)


def _send_at_once(_client: Any, _userdata: object, line: Any) -> None:
    with contextlib.suppress(OSError):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
