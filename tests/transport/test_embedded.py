from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from agent.errors import NetworkError, PlaintextRefusedError
from agent.transport import embedded as module
from agent.transport.mqtt import MqttLink
from tests.transport.brokers import embedded
from tests.transport.conftest import FAST, take

CONNECT = b"\x10\x12\x00\x04MQTT\x04\xc2\x00\x00\x00\x00\x00\x01u\x00\x01p"
LASTING = b"\x10\x13\x00\x04MQTT\x04\xc0\x00\x00\x00\x01c\x00\x01u\x00\x01p"


async def raw(port: int, data: bytes, expected: int) -> bytes:
    """Send bytes, and give what the broker answers until it hangs up or has said enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        answer = b""
        async with asyncio.timeout(5):
            while len(answer) < expected and (more := await reader.read(expected - len(answer))):
                answer += more
        return answer
    finally:
        writer.close()
        await writer.wait_closed()


def link(port: int, **options: Any) -> MqttLink:
    options.setdefault("client_id", "c")
    return MqttLink(url=f"mqtt://u:p@127.0.0.1:{port}", backoff=FAST, **options)


async def test_it_picks_a_free_port_and_is_gone_after() -> None:
    before = threading.active_count()
    async with embedded() as broker:
        assert broker.port > 0
        assert await raw(broker.port, CONNECT, 4) == b"\x20\x02\x00\x00"
    with pytest.raises(ConnectionRefusedError):
        await raw(broker.port, CONNECT, 4)
    gc.collect()
    assert threading.active_count() <= before


async def test_a_taken_port_is_said_so() -> None:
    async with embedded() as broker:
        with pytest.raises(NetworkError, match="cannot listen") as caught:
            async with embedded(port=broker.port):
                pass
    assert "port" in caught.value.advice


async def test_it_does_not_listen_beyond_this_machine_unasked() -> None:
    with pytest.raises(PlaintextRefusedError):
        async with embedded(host="0.0.0.0"):
            pass


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00", b"\x20\x02\x00\x01", id="mqtt 5"),
        pytest.param(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", b"\x20\x02\x00\x04", id="no user"),
        pytest.param(CONNECT.replace(b"\xc2", b"\xc0"), b"\x20\x02\x00\x02", id="a session without a name"),
        pytest.param(b"\xc0\x00", b"", id="something before its connect"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"", id="rubbish"),
        pytest.param(b"\x10\xff\xff\xff\x7f", b"", id="a promise of 256 MB"),
        pytest.param(CONNECT + CONNECT, b"\x20\x02\x00\x00", id="a second connect"),
        pytest.param(CONNECT + b"\x34\x05\x00\x01a\x00\x01", b"\x20\x02\x00\x00", id="a publish of QoS 2"),
        pytest.param(CONNECT + b"\x30\xff\xff\x7f", b"\x20\x02\x00\x00", id="a packet that is too large"),
    ],
)
async def test_a_client_that_is_wrong_is_answered_and_sent_away(data: bytes, answer: bytes) -> None:
    async with embedded() as broker:
        assert await raw(broker.port, data, 100) == answer
        assert await raw(broker.port, CONNECT, 4) == b"\x20\x02\x00\x00"


async def test_a_client_that_never_says_anything_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    async with embedded() as broker:
        assert await raw(broker.port, b"", 1) == b""
        assert await raw(broker.port, b"\x10\x20half", 1) == b""


async def test_a_client_that_falls_silent_is_sent_away_and_its_will_is_published() -> None:
    silent = b"\x10\x18\x00\x04MQTT\x04\xc6\x00\x01\x00\x00\x00\x01w\x00\x01x\x00\x01u\x00\x01p"
    async with embedded() as broker, link(broker.port) as watcher:
        await watcher.subscribe("w")
        assert await raw(broker.port, silent, 100) == b"\x20\x02\x00\x00"
        assert [message.payload for message in await take(watcher, 1)] == [b"x"]


async def test_a_wrong_password_does_not_touch_the_session_it_names() -> None:
    async with embedded(authenticate=lambda _user, password: password == "p") as broker, link(broker.port) as owner:
        await owner.subscribe("t")
        wrong = LASTING[:-1] + b"X"
        assert await raw(broker.port, wrong, 100) == b"\x20\x02\x00\x04"
        await owner.publish("t", b"still here")
        assert [message.payload for message in await take(owner, 1)] == [b"still here"]


async def test_too_many_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 1)
    async with embedded() as broker, link(broker.port):
        try:
            answer = await raw(broker.port, CONNECT, 4)
        except ConnectionError:
            answer = b""
        assert answer == b""


async def test_every_message_that_passes_can_be_observed() -> None:
    seen: list[tuple[str, str, bytes]] = []
    async with (
        embedded(observe=lambda *message: seen.append(message), allowed=lambda _u, _a, topic: topic != "no") as broker,
        link(broker.port) as client,
    ):
        await client.publish("yes", b"1")
        await client.publish("no", b"2")
    assert seen == [("u", "yes", b"1")]
    assert broker.exchange.forbidden == 1


async def test_closing_with_clients_inside_leaves_nothing_running() -> None:
    async with embedded() as broker:
        client = link(broker.port)
        await client.__aenter__()
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    assert await reader.read(1) == b""
    writer.close()
    await client.__aexit__(None, None, None)
    assert len(asyncio.all_tasks()) == 1
