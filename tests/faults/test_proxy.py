"""The fault proxy itself, with a real client on one side and a real broker on the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.transport.link import Message
from agent.transport.mqtt import MqttLink, Version
from tests.faults.plan import Direction, Fault
from tests.faults.proxy import FaultProxy
from tests.transport.brokers import mosquitto
from tests.transport.conftest import FAST

TOPIC = "bramble/tests/faults"
WITHIN = 10.0


@dataclass
class Ends:
    """Two clients of one broker: one behind the proxy, one straight at it."""

    behind: MqttLink
    straight: MqttLink
    happened: list[Fault]


@asynccontextmanager
async def ends(directory: Path, fault: Fault, *, protocol: Version = 5) -> AsyncIterator[Ends]:
    happened: list[Fault] = []
    with mosquitto(directory) as broker:
        async with FaultProxy(upstream=broker.port, faults=[fault], happened=happened.append) as proxy:
            behind = MqttLink(
                url=proxy.url, client_id="behind", protocol=protocol, keepalive=2, backoff=FAST, answer_seconds=0.3
            )
            straight = MqttLink(url=broker.url, client_id="straight", protocol=protocol)
            async with behind, straight:
                await behind.subscribe(f"{TOPIC}/to")
                await straight.subscribe(f"{TOPIC}/from")
                yield Ends(behind, straight, happened)


async def sent(line: Ends, direction: Direction, count: int, *, hear: int) -> list[bytes]:
    """Send numbered messages through the proxy one way, and give the first so many that come out."""
    source, sink, topic = (
        (line.behind, line.straight, f"{TOPIC}/from")
        if direction == "to-broker"
        else (line.straight, line.behind, f"{TOPIC}/to")
    )
    heard: list[bytes] = []

    async def listen() -> None:
        async for message in sink.messages():
            heard.append(_taken(message))
            if len(heard) == hear:
                return

    async with asyncio.timeout(WITHIN):
        listening = asyncio.create_task(listen())
        await asyncio.gather(*(source.publish(topic, f"message {number}".encode()) for number in range(count)))
        await listening
    return heard


def _taken(message: Message) -> bytes:
    message.ack()
    return message.payload


def numbered(*numbers: int) -> list[bytes]:
    return [f"message {number}".encode() for number in numbers]


WAYS: tuple[Direction, ...] = ("to-broker", "to-client")


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_dropped_message_is_acknowledged_and_never_comes(
    tmp_path: Path, direction: Direction, protocol: Version
) -> None:
    fault = Fault(kind="drop", who="hub", at=2, direction=direction)
    async with ends(tmp_path, fault, protocol=protocol) as line:
        assert await sent(line, direction, 4, hear=3) == numbered(0, 2, 3)
        assert line.happened == [fault]


@pytest.mark.parametrize("direction", WAYS)
async def test_a_duplicated_message_comes_twice_from_the_client_and_once_more_from_the_broker(
    tmp_path: Path, direction: Direction
) -> None:
    async with ends(tmp_path, Fault(kind="duplicate", who="hub", at=2, direction=direction)) as line:
        assert await sent(line, direction, 3, hear=4) == numbered(0, 1, 1, 2)


@pytest.mark.parametrize("direction", WAYS)
async def test_a_reordered_message_comes_after_those_that_overtook_it(tmp_path: Path, direction: Direction) -> None:
    async with ends(tmp_path, Fault(kind="reorder", who="hub", at=1, direction=direction, extra=2)) as line:
        assert await sent(line, direction, 4, hear=4) == numbered(1, 2, 0, 3)


@pytest.mark.parametrize("direction", WAYS)
async def test_a_reordered_message_that_nothing_overtakes_comes_all_the_same(
    tmp_path: Path, direction: Direction
) -> None:
    async with ends(tmp_path, Fault(kind="reorder", who="hub", at=1, direction=direction, extra=4)) as line:
        assert await sent(line, direction, 1, hear=1) == numbered(0)


@pytest.mark.parametrize("direction", WAYS)
async def test_a_corrupted_message_differs_in_one_bit(tmp_path: Path, direction: Direction) -> None:
    async with ends(tmp_path, Fault(kind="corrupt", who="hub", at=1, direction=direction, extra=8 * 3 + 1)) as line:
        (heard,) = await sent(line, direction, 1, hear=1)
    assert heard == b"mesqage 0"


@pytest.mark.parametrize("direction", WAYS)
async def test_a_cut_ends_the_connection_in_the_middle_of_a_packet_and_everything_comes_again(
    tmp_path: Path, direction: Direction
) -> None:
    async with ends(tmp_path, Fault(kind="cut", who="hub", at=150, direction=direction)) as line:
        heard = await sent(line, direction, 20, hear=20)
    assert set(numbered(*range(20))) - set(heard) <= set(numbered(*range(15, 20)))  # behind those that came twice
    assert line.happened


@pytest.mark.parametrize("direction", WAYS)
async def test_a_stalled_connection_breaks_after_its_silence_and_nothing_is_lost(
    tmp_path: Path, direction: Direction
) -> None:
    async with ends(tmp_path, Fault(kind="stall", who="hub", at=1, direction=direction, seconds=0.1)) as line:
        assert await sent(line, direction, 1, hear=1) == numbered(0)
        assert [fault.kind for fault in line.happened] == ["stall"]


@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_message_that_is_lost_before_the_broker_comes_over_another_connection(
    tmp_path: Path, protocol: Version
) -> None:
    fault = Fault(kind="lose", who="hub", at=2, direction="to-broker")
    async with ends(tmp_path, fault, protocol=protocol) as line:
        heard = await sent(line, "to-broker", 4, hear=4)
    assert set(heard) == set(numbered(0, 1, 2, 3))
