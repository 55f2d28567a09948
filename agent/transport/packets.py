"""MQTT 3.1.1 packets as the embedded broker sees them, read and written by amqtt's codec.

A packet is read whole, within a stated size, before the codec looks at it; so a length inside it cannot reach beyond
it, and a client that promises much makes nobody allocate.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, TypeAlias

from amqtt.adapters import BufferReader
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from agent.errors import MalformedMessageError, OversizedMessageError
from agent.transport.exchange import Delivery, Will

ACCEPTED, BAD_VERSION, BAD_CLIENT_ID, UNAVAILABLE, BAD_CREDENTIALS = 0, 1, 2, 3, 4
REFUSED_FILTER = 0x80

_LEVEL: Final = 4
_CONNECT: Final = 1
_PUBLISH: Final = 3
_PREFIX: Final = b"\x00\x04MQTT"
_ADVICE = "The connection is closed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A client wants in."""

    client_id: str
    """Empty if the client leaves the choice to the broker."""
    clean: bool
    keepalive: int
    user: str | None
    password: str | None
    will: Will | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A client says something."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Puback:
    """A client has taken a message."""

    packet_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """A client asks for messages: filters, each with its QoS."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe:
    """A client asks for no more of them."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """A client asks whether we are there."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A client leaves in order."""


Packet: TypeAlias = Connect | Publish | Puback | Subscribe | Unsubscribe | Ping | Disconnect


class BadVersionError(MalformedMessageError):
    """The client speaks another version of MQTT; it is told so."""

    code = "mqtt-version"


async def read_packet(stream: asyncio.StreamReader, *, max_bytes: int, opening: bool = False) -> Packet:
    """Read the next packet; with ``opening``, anything but a CONNECT is refused at its first byte.

    Raises:
        asyncio.IncompleteReadError, ConnectionError: the client is gone.
        OversizedMessageError: the packet promises more than ``max_bytes``; nothing of it was read.
        BadVersionError: a CONNECT of another version of MQTT.
        MalformedMessageError: anything else that is no packet a client sends.
    """
    first = (await stream.readexactly(1))[0]
    if opening and first >> 4 != _CONNECT:
        raise _malformed("it does not begin with CONNECT")
    length = 0
    for shift in (0, 7, 14, 21):
        byte = (await stream.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise _malformed("its length has no end")
    if length > max_bytes:
        raise OversizedMessageError(
            f"A client sends a packet of {length} bytes; at most {max_bytes} are taken.", advice=_ADVICE
        )
    body = await stream.readexactly(length)
    kind, flags = divmod(first, 16)
    if (
        kind == _CONNECT
        and body[: len(_PREFIX)] == _PREFIX
        and body[len(_PREFIX) : len(_PREFIX) + 1] != bytes([_LEVEL])
    ):
        raise BadVersionError("A client speaks another version of MQTT than 3.1.1.", advice=_ADVICE)
    if kind == _PUBLISH and flags & 0b110 == 0b110:
        raise _malformed("a QoS of 3")
    try:
        header = MQTTFixedHeader(kind, flags, length)
        packet = await packet_class(header).from_stream(BufferReader(body), fixed_header=header)
        return _translate(packet)
    except (AMQTTError, MQTTError, NoDataError, ValueError, TypeError, AttributeError) as error:
        raise _malformed("its parts do not fit together") from error


def _translate(packet: object) -> Packet:
    read: Packet
    match packet:
        case PublishPacket():
            read = Publish(
                topic=str(packet.topic_name),
                payload=bytes(packet.data),
                qos=int(packet.qos),
                retain=bool(packet.retain_flag),
                packet_id=packet.packet_id if packet.packet_id is None else int(packet.packet_id),
            )
        case PubackPacket():
            read = Puback(packet_id=int(packet.packet_id))
        case SubscribePacket():
            asked = tuple((str(topic), int(qos)) for topic, qos in packet.payload.topics)
            read = Subscribe(packet_id=int(packet.variable_header.packet_id), filters=asked)
        case UnsubscribePacket():
            names = tuple(str(topic) for topic in packet.payload.topics)
            read = Unsubscribe(packet_id=int(packet.variable_header.packet_id), filters=names)
        case PingReqPacket():
            read = Ping()
        case DisconnectPacket():
            read = Disconnect()
        case ConnectPacket():
            read = _translate_connect(packet)
        case _:
            raise _malformed("a client does not send it")
    return read


def _translate_connect(packet: ConnectPacket) -> Connect:
    if packet.proto_name != "MQTT" or packet.reserved_flag:
        raise _malformed("it is not MQTT 3.1.1")
    will: Will | None = None
    if packet.will_flag:
        if packet.will_topic is None or packet.will_message is None:
            raise _malformed("its will is cut short")
        will = Will(
            topic=str(packet.will_topic), payload=bytes(packet.will_message), retain=bool(packet.will_retain_flag)
        )
    return Connect(
        client_id="" if packet.client_id_is_random else str(packet.client_id),
        clean=bool(packet.clean_session_flag),
        keepalive=int(packet.keep_alive),
        user=None if packet.username is None else str(packet.username),
        password=None if packet.password is None else str(packet.password),
        will=will,
    )


def connack(code: int, *, resumed: bool = False) -> bytes:
    """Answer a CONNECT."""
    return bytes(ConnackPacket.build(int(resumed), code).to_bytes())


def publish(delivery: Delivery) -> bytes:
    """Hand over a message."""
    qos = 0 if delivery.packet_id is None else 1
    packet = PublishPacket.build(
        delivery.topic, delivery.payload, delivery.packet_id, delivery.again, qos, delivery.retained
    )
    return bytes(packet.to_bytes())


def puback(packet_id: int) -> bytes:
    """Acknowledge a PUBLISH."""
    return bytes(PubackPacket.build(packet_id).to_bytes())


def suback(packet_id: int, granted: list[int]) -> bytes:
    """Answer a SUBSCRIBE, filter by filter."""
    return bytes(SubackPacket.build(packet_id, granted).to_bytes())


def unsuback(packet_id: int) -> bytes:
    """Answer an UNSUBSCRIBE."""
    return bytes(UnsubackPacket.build(packet_id).to_bytes())


def pingresp() -> bytes:
    """Answer a PINGREQ."""
    return bytes(PingRespPacket.build().to_bytes())


def _malformed(what: str) -> MalformedMessageError:
    return MalformedMessageError(f"A client sent something that is no MQTT packet: {what}.", advice=_ADVICE)
