from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MalformedMessageError, OversizedMessageError, ProtocolError
from agent.transport import packets
from agent.transport.exchange import Delivery, Will
from agent.transport.packets import BadVersionError, Connect, Packet, Publish, read_packet


def read(data: bytes, *, max_bytes: int = 1000) -> Packet:
    async def feed() -> Packet:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        return await read_packet(stream, max_bytes=max_bytes)

    return asyncio.run(feed())


def packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


CONNECT = b"\x00\x04MQTT\x04"


def test_a_client_with_all_it_can_say_is_understood() -> None:
    body = CONNECT + b"\xec\x00\x1e" + text(b"id") + text(b"life") + text(b"\x00gone") + text(b"me") + text(b"pw")
    assert read(packet(0x10, body)) == Connect(
        client_id="id",
        clean=False,
        keepalive=30,
        user="me",
        password="pw",
        will=Will(topic="life", payload=b"\x00gone", retain=True),
    )


def test_a_client_that_says_little_is_understood() -> None:
    assert read(packet(0x10, CONNECT + b"\x02\x00\x00" + text(b""))) == Connect(
        client_id="", clean=True, keepalive=0, user=None, password=None, will=None
    )


def test_other_versions_are_told_apart_from_rubbish() -> None:
    with pytest.raises(BadVersionError):
        read(packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a"))
    for body in (b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a", CONNECT + b"\x03\x00\x00\x00\x01a", CONNECT, b""):
        with pytest.raises(MalformedMessageError):
            read(packet(0x10, body))


def test_a_publish_is_understood() -> None:
    assert read(packet(0x33, text(b"a/b") + b"\x01\x02" + b"\xff\x00")) == Publish(
        topic="a/b", payload=b"\xff\x00", qos=1, retain=True, packet_id=258
    )
    assert read(packet(0x30, text(b"a"))) == Publish(topic="a", payload=b"", qos=0, retain=False, packet_id=None)


def test_what_it_writes_is_what_mqtt_says() -> None:
    delivery = Delivery(packet_id=258, topic="a", payload=b"xy", retained=True, again=True)
    assert packets.publish(delivery) == bytes.fromhex("3b07000161 0102 7879")
    delivery = Delivery(packet_id=None, topic="a", payload=b"xy", retained=False)
    assert packets.publish(delivery) == bytes.fromhex("3005000161 7879")
    assert packets.connack(0, resumed=True) == bytes.fromhex("20020100")
    assert packets.connack(4) == bytes.fromhex("20020004")
    assert packets.puback(258) == bytes.fromhex("40020102")
    assert packets.suback(1, [1, 0x80]) == bytes.fromhex("900400010180")
    assert packets.unsuback(1) == bytes.fromhex("b0020001")
    assert packets.pingresp() == bytes.fromhex("d000")


def test_a_packet_that_promises_too_much_is_refused_unread() -> None:
    with pytest.raises(OversizedMessageError):
        read(b"\x30\xff\xff\xff\x7f", max_bytes=100_000)
    with pytest.raises(MalformedMessageError, match="no end"):
        read(b"\x30\xff\xff\xff\xff\x01")


@given(st.binary(max_size=120), st.integers(0, 255))
@settings(max_examples=200)
def test_any_bytes_are_a_packet_or_an_error_of_the_protocol(body: bytes, first: int) -> None:
    with contextlib.suppress(ProtocolError):
        read(packet(first, body))
