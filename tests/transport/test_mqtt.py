from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BrokerRefusedError, BrokerUnreachableError, PlaintextRefusedError
from agent.transport import mqtt as module
from agent.transport import paho_client
from agent.transport.link import LinkState, Presence
from agent.transport.mqtt import MqttLink, Version
from tests.transport.brokers import embedded, free_port, mosquitto
from tests.transport.conftest import FAST, take

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CONNACK = {5: b"\x20\x03\x00\x00\x00", 4: b"\x20\x02\x00\x00"}


def paho_threads() -> int:
    return sum("paho" in thread.name for thread in threading.enumerate())


def password_file(directory: Path) -> Path:
    path = directory / "passwords"
    try:
        subprocess.run(["mosquitto_passwd", "-c", "-b", path, "user", "right"], check=True)
    except FileNotFoundError:
        pytest.skip("mosquitto_passwd is not installed")
    path.chmod(0o644)
    return path


@contextlib.asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """Something that is no good broker."""

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with listening:
        yield f"mqtt://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_plain_text_to_another_machine_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(PlaintextRefusedError):
        async with MqttLink(url="mqtt://192.0.2.1", client_id="c"):
            pass


async def test_nobody_listening_is_said_so_with_advice_and_without_secrets() -> None:
    with pytest.raises(BrokerUnreachableError, match="refused") as caught:
        async with MqttLink(url=f"mqtt://user:hunter2@127.0.0.1:{free_port()}", client_id="c"):
            pass
    assert "hunter2" not in str(caught.value) + caught.value.advice
    assert paho_threads() == 0


async def test_a_name_nobody_knows_is_said_so() -> None:
    with pytest.raises(BrokerUnreachableError, match="name"):
        async with MqttLink(url="mqtts://no-such-host.invalid", client_id="c"):
            pass


async def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paho_client, "CONNECT_SECONDS", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(silent) as url:
        with pytest.raises(BrokerUnreachableError, match="says nothing"):
            async with MqttLink(url=url, client_id="c"):
                pass
    assert paho_threads() == 0


async def test_a_server_that_hangs_up_is_a_refusal() -> None:
    async def rude(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with server(rude) as url:
        with pytest.raises(BrokerRefusedError, match="hung up"):
            async with MqttLink(url=url, client_id="c", backoff=FAST):
                pass
    assert paho_threads() == 0


async def test_auto_falls_back_to_3_1_1_where_5_is_not_spoken() -> None:
    async with embedded() as broker:
        async with MqttLink(url=f"mqtt://u:p@127.0.0.1:{broker.port}", client_id="c") as link:
            await link.publish("t", b"")
        with pytest.raises(BrokerRefusedError, match="version") as caught:
            async with MqttLink(url=f"mqtt://u:p@127.0.0.1:{broker.port}", client_id="c", protocol=5):
                pass
    assert "protocol" in caught.value.advice


@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_wrong_password_is_refused(tmp_path: Path, protocol: Version) -> None:
    passwords = password_file(tmp_path)
    with mosquitto(tmp_path, ["allow_anonymous false", f"password_file {passwords}", "user root"]) as broker:
        with pytest.raises(BrokerRefusedError, match=r"password|may not connect") as caught:
            async with MqttLink(url=broker.url, client_id="c", username="user", password="wrong", protocol=protocol):
                pass
        assert "joining again" in caught.value.advice
        async with MqttLink(
            url=broker.url, client_id="c", username="user", password="right", protocol=protocol
        ) as link:
            await link.publish("t", b"")


@pytest.mark.parametrize("protocol", [5, 4])
@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x40\x00",
        b"\x30\x00",
        b"\x32\x04\x00\x01a\x00",
        b"\x90\x00",
        b"\xff\xff\xff\xff\xff",
        b"\xe0\x03\x00\xff\xff",
        b"\x30\x03\x00\x01\xff",
        b"\xf0\x00",
    ],
    ids=bytes.hex,
)
async def test_a_broker_that_sends_rubbish_does_not_stop_the_link(protocol: Version, rubbish: bytes) -> None:
    visits = 0

    async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.read(1000)
        writer.write(CONNACK[4 if protocol == 4 else 5])
        if visits == 1:
            writer.write(rubbish)
            await writer.drain()
            return
        await reader.read()

    async with server(mad) as url, MqttLink(url=url, client_id="c", protocol=protocol, backoff=FAST) as link:
        states: asyncio.Queue[LinkState] = asyncio.Queue()
        link.on_state(states.put_nowait)
        async with asyncio.timeout(5):
            while visits < 2 or not link.connected:
                await states.get()


async def test_a_broker_that_does_not_read_cannot_keep_the_link_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, paho_client):
        monkeypatch.setattr(place, "_FAREWELL_SECONDS", 0.2)
    closing = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(CONNACK[4])
        await closing.wait()

    async with server(deaf) as url:
        async with MqttLink(url=url, client_id="c", protocol=4) as link:
            stuck = [asyncio.create_task(link.publish("t", bytes(90_000))) for _ in range(200)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*stuck, return_exceptions=True)
        closing.set()
    assert {type(result) for result in results} == {BrokerUnreachableError}
    assert paho_threads() == 0


async def test_no_more_than_the_broker_allows_is_in_flight() -> None:
    unanswered: list[int] = []
    most = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        await reader.read(1000)
        writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x02")  # CONNACK of MQTT 5 with receive maximum 2
        data = b""
        while more := await reader.read(1000):
            data += more
            while len(data) >= 9:  # PUBLISH, QoS 1, topic "t", no properties, one byte
                assert data[:5] == b"\x32\x07\x00\x01t"
                unanswered.append(int.from_bytes(data[5:7], "big"))
                data = data[9:]
            most = max(most, len(unanswered))
            await asyncio.sleep(0)
            while unanswered:
                writer.write(b"\x40\x02" + unanswered.pop(0).to_bytes(2, "big"))

    async with server(counting) as url, MqttLink(url=url, client_id="c", protocol=5) as link:
        async with asyncio.timeout(5):
            await asyncio.gather(*(link.publish("t", b"x") for _ in range(9)), return_exceptions=False)
    assert most <= 2


@pytest.mark.parametrize(("bound", "value"), [("MAX_QUEUED", 5), ("MAX_QUEUED_BYTES", 8)])
async def test_what_does_not_fit_the_queue_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(module, bound, value)
    async with embedded() as broker:
        url = f"mqtt://u:p@127.0.0.1:{broker.port}"
        async with (
            MqttLink(url=url, client_id="reader", backoff=FAST) as reader,
            MqttLink(url=url, client_id="writer") as writer,
        ):
            await reader.subscribe("t")
            for number in range(30):
                await writer.publish("t", b"%d" % number)
            await reader.publish("fence", b"")  # by now more than five have come
            received: set[bytes] = set()
            while len(received) < 30:
                received |= {message.payload for message in await take(reader, 1)}


async def test_cancelling_the_first_connection_leaves_nothing_behind() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        entered.set()
        await reader.read()

    entered = asyncio.Event()
    async with server(silent) as url:
        connecting = asyncio.create_task(MqttLink(url=url, client_id="c").__aenter__())
        await entered.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    assert paho_threads() == 0


async def test_a_broker_that_acknowledges_nothing_over_a_connection_is_connected_to_anew() -> None:
    visits = 0

    async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.read(1000)
        writer.write(CONNACK[4])
        while data := await reader.read(1000):
            if visits > 1 and data.startswith(b"\x32"):  # PUBLISH, QoS 1, topic "t"
                writer.write(b"\x40\x02" + data[5:7])

    options: dict[str, Any] = {"client_id": "c", "protocol": 4, "backoff": FAST, "answer_seconds": 0.2}
    async with server(forgetful) as url, asyncio.timeout(20), MqttLink(url=url, **options) as link:
        await link.publish("t", b"")
    assert visits == 2


def through(port: int) -> MqttLink:
    return MqttLink(url=f"mqtt://u:p@127.0.0.1:{port}", client_id="c", backoff=FAST)


async def test_an_error_in_pahos_thread_breaks_the_connection_and_it_is_made_anew() -> None:
    def fail() -> None:
        raise RuntimeError("as if paho could not read what came")

    async with embedded() as broker, asyncio.timeout(10), through(broker.port) as link:
        await link.subscribe("t")
        assert link._client is not None
        first = link._client
        first._client._packet_handle = fail
        await link.publish("t", b"acknowledged on the next connection")
        assert [message.payload for message in await take(link, 1)] == [b"acknowledged on the next connection"]
        assert link._client is not first


async def test_a_link_that_can_no_longer_be_mended_says_why_to_everybody_who_waits_for_it() -> None:
    def fail() -> float:
        raise ArithmeticError("as if waiting could not be worked out")

    async with embedded() as broker, asyncio.timeout(10), through(broker.port) as link:
        assert link._client is not None
        link._mender._backoff.wait = fail  # type: ignore[method-assign]
        link._client.cut()
        listening = asyncio.create_task(take(link, 1))
        with pytest.raises(ArithmeticError):
            await listening
        with pytest.raises(ArithmeticError):
            await link.publish("t", b"")
    assert paho_threads() == 0


async def test_waiting_to_the_end_does_not_swallow_a_cancellation_that_comes_with_the_end() -> None:
    ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(paho_client.to_the_end(ending))
    await asyncio.sleep(0)
    waiting.cancel()
    ending.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_cancelled_publish_that_waits_its_turn_is_let_go_of() -> None:
    async with embedded() as broker, MqttLink(url=f"mqtt://u:p@127.0.0.1:{broker.port}", client_id="c") as link:
        link._client, connected = None, link._client  # as over a break
        waiting = asyncio.create_task(link.publish("t", bytes(1000)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not link._waiting
        link._client = connected


async def test_a_broker_whose_packets_are_too_small_is_refused_with_what_to_change(tmp_path: Path) -> None:
    with mosquitto(tmp_path, ["allow_anonymous true", "max_packet_size 65536"]) as broker:
        link = MqttLink(url=broker.url, client_id="c", protocol=5)
        with pytest.raises(BrokerRefusedError, match="no packets of 96 KiB") as caught:
            await link.__aenter__()
    assert "max_packet_size" in caught.value.advice
    assert paho_threads() == 0


async def test_a_link_whose_birth_message_is_refused_hears_again_what_it_asked_for() -> None:
    asked: asyncio.Queue[bytes] = asyncio.Queue()

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK[5])
        while data := await reader.read(1000):
            while data:
                packet, data = data[: 2 + data[1]], data[2 + data[1] :]
                if packet.startswith(b"\x33"):  # PUBLISH, retained: not authorised
                    writer.write(b"\x40\x03" + packet[5:7] + b"\x87")
                elif packet.startswith(b"\x82"):  # SUBSCRIBE: granted
                    writer.write(b"\x90\x04" + packet[2:4] + b"\x00\x01")
                    asked.put_nowait(packet)

    states: list[LinkState] = []
    presence = Presence(topic="t", birth=b"here", will=b"gone")
    async with server(strict) as url:
        link = MqttLink(url=url, client_id="c", protocol=5, backoff=FAST, presence=lambda: presence)
        link.on_state(states.append)
        async with link, asyncio.timeout(20):
            await link.subscribe("what/we/read")
            assert b"what/we/read" in await asked.get()
            assert link._client is not None
            link._client.cut()
            assert b"what/we/read" in await asked.get()
    assert any(state.connected and "refused a message for t" in state.reason for state in states)


async def test_a_broker_that_never_answers_a_subscription_is_connected_to_anew() -> None:
    visits = 0

    async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.read(1000)
        writer.write(CONNACK[4])
        while data := await reader.read(1000):
            if visits > 1 and data.startswith(b"\x82"):  # SUBSCRIBE
                writer.write(b"\x90\x03" + data[2:4] + b"\x01")

    options: dict[str, Any] = {"client_id": "c", "protocol": 4, "backoff": FAST, "answer_seconds": 0.2}
    async with server(forgetful) as url, asyncio.timeout(20), MqttLink(url=url, **options) as link:
        await link.subscribe("t")
    assert visits == 2
