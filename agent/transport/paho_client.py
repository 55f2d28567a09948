"""One connection by paho's client and its thread, in a form that an event loop can live with.

paho runs its network loop in a thread of its own; what happens there is told in the event loop, in order. A client is
made for one connection and then thrown away: whoever wants another one makes another (``agent.transport.mending``).
So paho never mends anything itself, nothing is sent ahead of CONNECT, and nothing is acknowledged on another connection
than the one it came by, where packet ids mean other messages.

A broker may be hostile too. paho sets aside as much memory as a packet's header asks for (256 MB), keeps QoS 2 messages
until the broker releases them, and hands over messages as fast as they come; all three are bounded here.

Three of paho's own steps are replaced: two because it reads ``mqtt_proxy`` for brokers on this machine too, and leaves
sockets open when TLS or WebSockets are not agreed on; the third because its thread may end without a word, and because
stopping a thread that is just ending fails in 2.1 and 2.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.transport.address import BrokerAddress
from agent.transport.link import MAX_PACKET_BYTES, Message, Presence
from agent.transport.proxies import Proxy
from agent.transport.refusals import NO_ANSWER, PACKETS_TOO_SMALL, TAKEN_OVER
from agent.transport.tls import Line, Tls

RECEIVE_MAXIMUM = 20
"""Messages the broker may have unacknowledged towards us (MQTT 5)."""

MAX_INCOMING_BYTES = 128 * 1024
"""The largest packet the broker is asked to send (MQTT 5)."""

MAX_FRAME_BYTES = 1024 * 1024
"""The largest WebSocket frame; a broker may put several packets into one."""

MAX_UNHEARD_BYTES = 32 * 1024 * 1024
"""What may have come and wait for the event loop, which is busy; a broker that sends more is left. One that keeps to
MQTT has 20 packets in flight at most."""

CONNECT_SECONDS = 10.0
"""How long a broker may take from the first packet of TCP to CONNACK."""

_PUBLISH_QOS, _PUBLISH_TWICE = 0xF6, 0x34  # type and QoS in the first byte of a packet: PUBLISH, QoS 2
_MESSAGE_BYTES = 512
_STEP_SECONDS = 5.0
_FAREWELL_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a link connects, whichever broker it is; see ``MqttLink``."""

    client_id: str
    session_seconds: int
    max_inflight: int
    keepalive: int
    tls: Callable[[], Tls]
    """Asked before each connection: a certificate may have been renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a connection ended."""

    why: str
    taken_over: bool = False
    """Whether the broker says that another connection with our client id took its place (MQTT 5)."""


class Events(Protocol):
    """What is told to the event loop, in its own thread and in the order it happened."""

    def is_published(self, mid: int, refusal: str | None) -> None:
        """A publish was acknowledged, or refused."""

    def is_subscribed(self, mid: int, *, granted: bool) -> None:
        """A subscription was answered."""

    def has_arrived(self, message: Message) -> None:
        """A message came."""


class PahoClient:
    """One connection to one broker with one version of MQTT. Belongs to the event loop that made it.

    Args:
        address: where to go, and as whom.
        proxy: what leads there; None to go directly.
        terms: how.
        version: 5, or 4 for 3.1.1.
        presence: what to say about being there.
        events: who is told, between ``open`` and the end.
    """

    def __init__(
        self,
        *,
        address: BrokerAddress,
        proxy: Proxy | None,
        terms: Terms,
        version: Literal[5, 4],
        presence: Presence | None,
        events: Events,
    ) -> None:
        self.address = address
        self.presence = presence
        self.limit = terms.max_inflight
        """Publishes that the broker takes in flight."""
        self._proxy = proxy
        self._terms = terms
        self._version = version
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[int] = self._loop.create_future()  # 0 or a reason code
        self.over: asyncio.Future[End] = self._loop.create_future()
        """Has the end of a connection that stood, once it broke."""
        self._gate = threading.Lock()  # what follows is shared by the two threads
        self._up = False
        self._cut = False
        self._unheard = 0
        self._line: socket.socket | None = None
        self._client = self._make()

    @property
    def up(self) -> bool:
        """Whether the connection stands."""
        return self._up

    @property
    def alert(self) -> ssl.SSLError | None:
        """What the broker did not like about our side of TLS, where it said so instead of answering."""
        return self._line.alert if isinstance(self._line, Line) else None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> int:
        """Connect; gives 0, or why the broker does not want us. Unless it gives 0, nothing is left behind.

        Raises:
            OSError: nobody answers there, or TLS, WebSockets or the proxy do not agree.
        """
        dialing = asyncio.ensure_future(asyncio.to_thread(self._dial))
        code = NO_ANSWER
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.shield(dialing)
                self._client.loop_start()
                code = await self._answer
        finally:
            if code:
                self.cut()
                with contextlib.suppress(Exception):
                    await to_the_end(dialing)
                await to_the_end(asyncio.create_task(self.stop()))
        return code

    async def stop(self) -> None:
        """Say goodbye if the connection stands, end paho's thread and close its sockets."""
        with self._gate:
            self._up = False
        if not self.over.done():
            self.over.cancel()  # nothing is told from here on
        self._client.disconnect()
        ending = asyncio.ensure_future(asyncio.to_thread(self._client.loop_stop))
        while True:
            await asyncio.wait({ending}, timeout=_FAREWELL_SECONDS)
            if ending.done():
                break
            self.cut()  # the broker does not read
        await ending
        self._client.reinitialise()  # closes what loop_stop leaves open

    def cut(self) -> None:
        """Break the connection under paho, even while it is being opened."""
        with self._gate:
            self._cut = True
            line = self._line
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    # -- sending; each gives None while the connection is down --------------------------------------------------------

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Publish with QoS 1; gives the id that ``is_published`` will name, unless the connection breaks first."""
        with self._gate:
            if not self._up:
                return None
            info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_NO_CONN):
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

    def _acknowledge(self, mid: int) -> None:
        with self._gate:
            if self._up:
                self._client.ack(mid, 1)

    # -- in a thread: opening the line --------------------------------------------------------------------------------

    def _dial(self) -> None:
        """Open the socket and send CONNECT.

        Raises:
            OSError: nobody answers there, or TLS, WebSockets or the proxy do not agree.
        """
        extra: dict[str, Any] = {}
        if self._version == 5:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_INCOMING_BYTES
            if self._terms.session_seconds:
                properties.SessionExpiryInterval = self._terms.session_seconds
            extra = {"properties": properties, "clean_start": not self._terms.session_seconds}
        try:
            self._client.connect(self.address.host, self.address.port, self._terms.keepalive, **extra)
            if self.address.path is not None:
                self._bound_frames(self._client.socket())
        except BaseException as error:
            if self._line is not None:
                self._line.close()
            if isinstance(error, paho.WebsocketConnectionError):
                raise ConnectionError("there is no MQTT over WebSockets at that path") from error
            raise

    def _open_line(self) -> socket.socket:
        """Open the socket, in place of paho."""
        where = (self.address.host, self.address.port)
        if self._proxy is None:
            line = socket.create_connection(where, timeout=_STEP_SECONDS)
        else:
            line = self._proxy.connect(*where, _STEP_SECONDS)
        line.settimeout(_STEP_SECONDS)
        with contextlib.suppress(OSError):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._keep(line)

    def _encrypt(self, line: socket.socket) -> ssl.SSLSocket:
        """Agree on TLS, in place of paho."""
        context = self._terms.tls().context()
        encrypted = context.wrap_socket(line, server_hostname=self.address.host, do_handshake_on_connect=False)
        self._keep(encrypted)
        encrypted.do_handshake()
        return encrypted

    def _keep(self, line: socket.socket) -> socket.socket:
        """Remember the socket, so that it can be cut."""
        with self._gate:
            self._line = line
            if self._cut:
                raise ConnectionAbortedError
        return line

    @staticmethod
    def _bound_frames(wrapper: Any) -> None:
        """Have paho's WebSocket set aside no more memory than a frame may take, whatever its header says."""
        read = wrapper._buffered_read  # noqa: SLF001 - see the module

        def bounded(length: int) -> Any:
            if length > MAX_FRAME_BYTES:
                raise ConnectionAbortedError(f"the broker sends a frame of {length} bytes")
            return read(length)

        wrapper._buffered_read = bounded  # noqa: SLF001 - see the module

    # -- in paho's thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run the network loop, in place of paho: however it ends, the connection has ended."""
        why = "paho's thread ended"
        try:
            self._client.loop_forever()
        except Exception as error:  # noqa: BLE001 (in the log, and the link goes on)
            _log.exception("paho's thread failed")
            why = f"the broker sent what cannot be read: {error!r}"
        self.cut()
        with self._gate:
            self._up = False
        self._post(self._has_ended, End(why=why))

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Have something told in the event loop, unless the connection has ended by then."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._tell, function, arguments)

    def _tell(self, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self.over.done():
            function(*arguments)

    def _on_connect(self, _client: Any, _userdata: object, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._post(self._is_answered, int(reason.value))
            return
        if int(getattr(properties, "MaximumPacketSize", MAX_PACKET_BYTES)) < MAX_PACKET_BYTES:
            self._post(self._is_answered, PACKETS_TOO_SMALL)  # it would hang up at the first chunk, again and again
            return
        self.limit = min(self.limit, int(getattr(properties, "ReceiveMaximum", self.limit)))
        with self._gate:
            self._up = True
        self._post(self._is_answered, 0)

    def _on_disconnect(self, _client: Any, _userdata: object, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._gate:
            self._up = False
        self._post(self._has_ended, End(why=str(reason).lower(), taken_over=reason.value == TAKEN_OVER))

    def _is_answered(self, code: int) -> None:
        if not self._answer.done():
            self._answer.set_result(code)

    def _has_ended(self, end: End) -> None:
        if self._answer.done():
            self.over.set_result(end)
        else:
            self._answer.set_result(NO_ANSWER)

    def _on_message(self, _client: Any, _userdata: object, received: Any) -> None:
        mid, qos = int(received.mid), int(received.qos)
        try:
            topic = str(received.topic)
        except UnicodeDecodeError:
            return  # not acknowledged: no conforming broker sends it
        message = Message(
            topic=topic,
            payload=bytes(received.payload),
            retained=bool(received.retain),
            _acknowledge=lambda: self._acknowledge(mid) if qos else None,
        )
        with self._gate:
            self._unheard += _size(message)
            flooded = self._unheard > MAX_UNHEARD_BYTES
        if flooded:
            self.cut()  # what was not acknowledged comes again
            return
        self._post(self._hear, message)

    def _hear(self, message: Message) -> None:
        with self._gate:
            self._unheard -= _size(message)
        self._events.has_arrived(message)

    def _receive(self, size: int) -> bytes:
        """Read from the broker, in place of paho, who would set aside whatever a packet's header asks for.

        Raises:
            ConnectionAbortedError: the packet is larger than any, or of a QoS that was not asked for.
        """
        command = self._client._in_packet["command"]  # noqa: SLF001 - see the module
        if size > MAX_INCOMING_BYTES or command & _PUBLISH_QOS == _PUBLISH_TWICE:
            raise ConnectionAbortedError(f"the broker sends a packet of {size} bytes, or of QoS 2")
        data: bytes = self._read(size)
        return data

    def _on_publish(self, _client: Any, _userdata: object, mid: int, reason: Any, _properties: Any) -> None:
        self._post(self._events.is_published, mid, str(reason) if reason.is_failure else None)

    def _on_subscribe(self, _client: Any, _userdata: object, mid: int, reasons: Any, _properties: Any) -> None:
        granted = not any(reason.is_failure for reason in reasons)
        self._post(lambda: self._events.is_subscribed(mid, granted=granted))

    # -- making it ----------------------------------------------------------------------------------------------------

    def _make(self) -> Any:
        terms, address = self._terms, self.address
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=terms.client_id,
            protocol=paho.MQTTv5 if self._version == 5 else paho.MQTTv311,
            clean_session=None if self._version == 5 else not terms.session_seconds,
            transport=address.transport,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _STEP_SECONDS
        client.max_inflight_messages_set(terms.max_inflight)
        client.suppress_exceptions = True  # an exception in a callback would end paho's thread
        client.username_pw_set(address.username, address.password)
        if self.presence is not None:
            client.will_set(self.presence.topic, self.presence.will, qos=1, retain=True)
        if address.path is not None:
            client.ws_set_options(path=address.path)
        if address.tls:
            client.tls_set_context(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # has paho call _encrypt
        self._read = client._sock_recv  # noqa: SLF001 - see the module
        client._sock_recv = self._receive  # noqa: SLF001 - see the module
        client._create_socket_connection = self._open_line  # noqa: SLF001 - see the module
        client._ssl_wrap_socket = self._encrypt  # noqa: SLF001 - see the module
        client._thread_main = self._work  # noqa: SLF001 - see the module
        client.on_log = _report
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client


async def to_the_end(task: asyncio.Future[None]) -> None:
    """Wait for ``task`` to its end even if we are cancelled meanwhile, then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
        except Exception:  # noqa: BLE001 - taken from the task below
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen
        raise cancelled
    task.result()


def _size(message: Message) -> int:
    """What a message takes in memory, about."""
    return len(message.payload) + _MESSAGE_BYTES


def _report(_client: Any, _userdata: object, _level: int, text: str) -> None:
    if "xception" in text:
        _log.error("paho: %s", text)
