"""Just enough of MQTT (3.1.1 and 5) to see where packets begin and end, and what is in a PUBLISH."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

CONNECT, PUBLISH, PUBACK = 1, 3, 4


def kind(packet: bytes | bytearray) -> int:
    """Give a packet's type: the upper half of its first byte."""
    return packet[0] >> 4


@dataclass
class Version:
    """Which MQTT a connection speaks: 4 (3.1.1) or 5."""

    number: int = 4

    def learn(self, packet: bytes | bytearray) -> None:
        """Read it from a CONNECT."""
        _length, start = varint(packet, 1)
        name = int.from_bytes(packet[start : start + 2], "big")
        self.number = packet[start + 2 + name]


@dataclass(frozen=True, slots=True)
class Publish:
    """What a PUBLISH says, and where its payload starts.

    Attributes:
        packet_id: 0 with QoS 0.
    """

    topic: str
    packet_id: int
    payload_at: int


@dataclass
class PacketStream:
    """Bytes in, whole packets out."""

    waiting: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytearray]:
        """Take in what came, and give every packet that is complete."""
        self.waiting += data
        while (length := packet_length(self.waiting)) is not None:
            packet = self.waiting[:length]
            del self.waiting[:length]
            yield packet


def varint(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """Read a variable byte integer; give it and where it ends."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def packet_length(data: bytes | bytearray) -> int | None:
    """Give the length of the first packet, or none while it is not all here."""
    try:
        length, start = varint(data, 1)
    except IndexError:
        return None
    return start + length if len(data) >= start + length else None


def read_publish(packet: bytes | bytearray, version: int) -> Publish:
    """Read a PUBLISH."""
    _length, start = varint(packet, 1)
    size = int.from_bytes(packet[start : start + 2], "big")
    topic = packet[start + 2 : start + 2 + size].decode()
    start += 2 + size
    packet_id = 0
    if (packet[0] >> 1) & 3:
        packet_id = int.from_bytes(packet[start : start + 2], "big")
        start += 2
    if version == 5:
        properties, start = varint(packet, start)
        start += properties
    return Publish(topic=topic, packet_id=packet_id, payload_at=start)


def puback(packet_id: int) -> bytes:
    """Give the acknowledgement of a PUBLISH: success, in either version."""
    return bytes((PUBACK << 4, 2)) + packet_id.to_bytes(2, "big")
