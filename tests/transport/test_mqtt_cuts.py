"""A line that is cut again and again, at any byte: everything published arrives all the same."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.transport.mqtt import MqttLink, Version
from tests.transport.brokers import embedded, mosquitto
from tests.transport.conftest import FAST

MESSAGES = 120


@contextlib.asynccontextmanager
async def cutting_proxy(port: int, chance: random.Random) -> AsyncIterator[int]:
    """Forward to ``port``, and cut each connection after some bytes in either direction."""
    visits: set[asyncio.Task[None]] = set()
    connections = 0
    closing = False

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: list[int]) -> None:
        while budget[0] > 0 and (data := await reader.read(min(4096, budget[0]))):
            budget[0] -= len(data)
            writer.write(data)
            await writer.drain()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1  # a broker sends all that is unacknowledged again: the line must bear that at some time
        budget = [chance.randrange(100, 1_000 + 500 * connections)]
        opening = asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port))
        ways: list[asyncio.Task[None]] = []
        try:
            there_reader, there_writer = await asyncio.shield(opening)
            ways.append(asyncio.create_task(forward(reader, there_writer, budget)))
            ways.append(asyncio.create_task(forward(there_reader, writer, budget)))
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:  # without waiting: it may be cancelled here too
            for way in ways:
                way.cancel()
            opening.add_done_callback(lambda opened: opened.result()[1].transport.abort())

    def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if closing:
            writer.transport.abort()
            return
        task = asyncio.create_task(visit(reader, writer))
        visits.add(task)
        task.add_done_callback(visits.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # even if it was cancelled before it began

    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        closing = True
        server.close()
        for task in tuple(visits):
            task.cancel()
        await asyncio.gather(*visits, return_exceptions=True)


async def everything_arrives(port: int, protocol: Version, seed: int) -> None:
    chance = random.Random(seed)
    async with (
        cutting_proxy(port, chance) as proxy,
        MqttLink(url=f"mqtt://u:p@127.0.0.1:{port}", client_id="reader", protocol=protocol) as first,
    ):
        await first.subscribe("t")  # over a whole line, so that the session is known to be there
        await first.__aexit__(None, None, None)
        links = [
            MqttLink(url=f"mqtt://u:p@127.0.0.1:{proxy}", client_id=name, protocol=protocol, backoff=FAST)
            for name in ("reader", "writer")
        ]
        received: set[int] = set()
        cuts = 0

        async def receive(link: MqttLink) -> None:
            async for message in link.messages():
                received.add(int.from_bytes(message.payload[:2], "big"))
                message.ack()
                if len(received) == MESSAGES:
                    return

        def count(*_: object) -> None:
            nonlocal cuts
            cuts += 1

        async with links[0] as reader, links[1] as writer, asyncio.timeout(20):
            reader.on_state(count)
            writer.on_state(count)
            receiving = asyncio.create_task(receive(reader))
            bodies = [number.to_bytes(2, "big") + bytes(chance.randrange(200)) for number in range(MESSAGES)]
            await asyncio.gather(*(writer.publish("t", body) for body in bodies))
            await receiving
        assert received == set(range(MESSAGES))
        assert cuts > 5


@pytest.mark.parametrize("seed", range(3))
async def test_everything_arrives_over_the_embedded_broker(seed: int) -> None:
    async with embedded() as broker:
        await everything_arrives(broker.port, "auto" if seed == 0 else 4, seed)


@pytest.mark.parametrize("protocol", [5, 4])
@pytest.mark.parametrize("seed", range(2))
async def test_everything_arrives_over_mosquitto(tmp_path: Path, protocol: Version, seed: int) -> None:
    with mosquitto(tmp_path) as broker:
        await everything_arrives(broker.port, protocol, seed)
