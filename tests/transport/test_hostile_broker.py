"""What a hostile broker can do to a link: have it connect again. Not fill its memory, and not end it."""

from __future__ import annotations

import asyncio
import os
import tracemalloc

import pytest

from agent.transport.mqtt import MAX_QUEUED_BYTES, MqttLink
from agent.transport.paho_client import MAX_INCOMING_BYTES, MAX_UNHEARD_BYTES, RECEIVE_MAXIMUM
from tests.transport.conftest import FAST
from tests.transport.hostile import Deed, Hostile, hostile, length, publish

TOPIC = "bramble/" + "ab" * 16 + "/hub/round"
MIB = 1024 * 1024


def link(broker: Hostile) -> MqttLink:
    return MqttLink(url=broker.url, client_id="victim", protocol=4, backoff=FAST, patient=True)


async def closes_at_once(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


async def sends_junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    junk = bytes([os.urandom(1)[0] & 0x0F, 100]) + os.urandom(5000)  # a packet of a type that there is not, and more
    writer.write(junk)
    await writer.drain()
    while await reader.read(1000):
        pass


async def announces_a_huge_packet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x30" + length(268_435_455) + bytes(100_000))
    await writer.drain()
    while await reader.read(1000):
        pass


async def publishes_twice_safe_and_never_releases(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for mid in range(1, 1000):
        writer.write(publish(TOPIC, bytes(90_000), mid=mid, qos=2))
        await writer.drain()
    while await reader.read(1000):
        pass


async def never_stops(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    packet = publish(TOPIC, bytes(90_000))
    while True:
        writer.write(packet)
        await writer.drain()


@pytest.mark.parametrize(
    "deed", [closes_at_once, sends_junk, announces_a_huge_packet, publishes_twice_safe_and_never_releases]
)
async def test_link_leaves_a_broker_that_breaks_the_rules_and_comes_again(deed: Deed) -> None:
    tracemalloc.start()
    try:
        async with hostile(deed) as broker, link(broker):
            await broker.until(4)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * RECEIVE_MAXIMUM * MAX_INCOMING_BYTES + 8 * MIB


async def test_flood_fills_a_bounded_queue_whether_anybody_reads_it_or_not() -> None:
    tracemalloc.start()
    try:
        async with hostile(never_stops) as broker, link(broker) as victim:
            heard = 0
            async for message in victim.messages():
                heard += len(message.payload)
                if heard > 64 * MIB:
                    break
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_QUEUED_BYTES + MAX_UNHEARD_BYTES + 16 * MIB
