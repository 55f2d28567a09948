"""Sessions: whose they are, how long they last, and what a clock that jumps has to do with it (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from agent.transport.backoff import SUSPICIOUS
from agent.transport.link import LinkState
from agent.transport.mqtt import MqttLink
from tests.transport.brokers import embedded, mosquitto
from tests.transport.conftest import FAST, take
from tests.transport.test_mqtt import CONNACK, server


async def test_a_link_whose_id_was_taken_says_so_and_waits_longer_each_time() -> None:
    came: list[float] = []
    enough = asyncio.Event()

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK[5] + b"\xe0\x02\x8e\x00")  # DISCONNECT: session taken over
        came.append(asyncio.get_running_loop().time())
        if len(came) == 4:
            enough.set()
        await reader.read()

    states: list[LinkState] = []
    async with server(taken) as url:
        link = MqttLink(url=url, client_id="c", protocol=5, backoff=(0.01, 0.1))
        link.on_state(states.append)
        async with link, asyncio.timeout(10):
            await enough.wait()
    assert all("only one may run with one identity" in state.reason for state in states if not state.connected)
    least = (0.05, 0.1, 0.2)  # the upper halves of 0.1, 0.2 and 0.4 s
    assert all(later - when >= wait for when, later, wait in zip(came, came[1:], least, strict=False))


async def test_twins_at_a_broker_that_does_not_tell_them_are_told_to_look(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        told: asyncio.Queue[LinkState] = asyncio.Queue()
        links = [MqttLink(url=broker.url, client_id="twin", backoff=FAST) for _ in range(2)]
        for link in links:
            link.on_state(told.put_nowait)
        async with links[0], links[1], asyncio.timeout(20):
            while "run with one identity" not in (await told.get()).reason:
                pass


async def test_connections_that_break_again_and_again_make_one_ask_for_a_twin() -> None:
    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK[4])
        await writer.drain()

    told: asyncio.Queue[LinkState] = asyncio.Queue()
    async with server(short) as url:
        link = MqttLink(url=url, client_id="c", protocol=4, backoff=FAST)
        link.on_state(told.put_nowait)
        async with link, asyncio.timeout(10):
            breaks: list[str] = []
            while len(breaks) < SUSPICIOUS:
                state = await told.get()
                if not state.connected:
                    breaks.append(state.reason)
    assert ["two run with one identity" in reason for reason in breaks] == [False] * (SUSPICIOUS - 1) + [True]


async def test_a_session_that_expired_is_begun_anew_with_the_same_subscriptions(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with MqttLink(url=broker.url, client_id="writer") as writer:
            reader = MqttLink(
                url=broker.url, client_id="reader", protocol=5, session_seconds=1, backoff=(2.0, 2.0), keepalive=5
            )
            gone = asyncio.Event()
            reader.on_state(lambda state: None if state.connected else gone.set())
            reader._mender._backoff._draw = lambda _least, most: most  # it is away for two seconds
            async with reader, asyncio.timeout(20):
                await reader.subscribe("t")
                assert reader._client is not None
                reader._client.cut()
                await gone.wait()
                await writer.publish("t", b"while it was away")
                await reader.wait_connected(10)
                await reader.subscribe("fence")
                await writer.publish("t", b"after")
                assert (await take(reader, 1))[0].payload == b"after"
        assert "Expiring client reader" in broker.log.read_text()


@pytest.mark.parametrize("jump", [-(10.0**9), 10.0**9], ids=["back to the nineties", "decades ahead"])
async def test_a_wall_clock_that_jumps_neither_stops_nor_hurries_a_link(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    async with embedded() as broker:
        attempts = 0

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attempts
            attempts += 1
            back, there = await asyncio.open_connection("127.0.0.1", broker.port)
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(_copy(reader, there), _copy(back, writer))

        async with server(forward) as url:
            through = url.replace("mqtt://", "mqtt://u:p@")
            async with MqttLink(url=through, client_id="c", backoff=FAST, protocol=4) as link, asyncio.timeout(10):
                await link.subscribe("t")
                now = time.time
                monkeypatch.setattr(time, "time", lambda: now() + jump)
                for number in range(3):
                    await link.publish("t", b"%d" % number)
                    assert [message.payload for message in await take(link, 1)] == [b"%d" % number]
                assert link._client is not None
                link._client.cut()
                await link.publish("t", b"after a break")
                while (await take(link, 1))[0].payload != b"after a break":
                    pass
    assert attempts <= 3


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    writer.close()
