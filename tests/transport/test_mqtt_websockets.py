"""MQTT over WebSockets, by mosquitto and by nats-server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.errors import BrokerUnreachableError, PlaintextRefusedError
from agent.transport.link import MAX_PACKET_BYTES, LinkState
from agent.transport.mqtt import MqttLink, Version
from tests.transport.brokers import free_port, mosquitto, nats
from tests.transport.conftest import FAST, take
from tests.transport.test_mqtt import server
from tests.transport.test_mqtt_tls import self_signed, trusting

LARGEST = MAX_PACKET_BYTES - 16 - len("t")


def beside_tcp(port: int) -> list[str]:
    """A listener for WebSockets on loopback; without one for TCP beside it, mosquitto 2.0.11 does not start."""
    return ["allow_anonymous true", f"listener {port} lo", "protocol websockets"]


async def everything_works(url: str, *, large: int = 1, **options: object) -> None:
    """Small packets, the largest ones, and a break. Mosquitto 2.0.11 sends 4 KiB each 0.1 s: it gets one of these."""
    states: asyncio.Queue[LinkState] = asyncio.Queue()
    async with MqttLink(url=url, client_id="c", backoff=FAST, **options) as link:  # type: ignore[arg-type]
        link.on_state(states.put_nowait)
        await link.subscribe("t")
        sizes = [1, 125, 126, 1_000, 70_000 if large > 1 else 2_000] + [LARGEST] * large
        await asyncio.gather(*(link.publish("t", bytes(size)) for size in sizes))
        assert [len(message.payload) for message in await take(link, len(sizes))] == sizes
        await link.subscribe("acknowledged")
        assert link._client is not None
        link._client.cut()
        async with asyncio.timeout(10):
            while not (await states.get()).connected:
                pass
        await link.subscribe("fence")
        await link.publish("t", b"after a break")
        assert [message.payload for message in await take(link, 1)] == [b"after a break"]


@pytest.mark.parametrize("protocol", [5, 4])
async def test_over_the_websockets_of_mosquitto(tmp_path: Path, protocol: Version) -> None:
    port = free_port()
    with mosquitto(tmp_path, beside_tcp(port), other_ports=[port]):
        await everything_works(f"ws://127.0.0.1:{port}/mqtt", protocol=protocol)


async def test_over_the_encrypted_websockets_of_mosquitto(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "localhost")
    port = free_port()
    with mosquitto(
        tmp_path, [*beside_tcp(port), f"certfile {certificate}", f"keyfile {key}", "user root"], other_ports=[port]
    ):
        await everything_works(f"wss://localhost:{port}/mqtt", tls=trusting(certificate))
        with pytest.raises(BrokerUnreachableError, match="certificate"):
            await everything_works(f"wss://localhost:{port}/mqtt")


async def test_over_the_websockets_of_nats_server(tmp_path: Path) -> None:
    port = free_port()
    with nats(tmp_path, config=f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}', other_ports=[port]):
        await everything_works(f"ws://127.0.0.1:{port}/mqtt", large=20)


async def test_the_path_in_the_url_is_the_one_that_is_asked_for() -> None:
    asked: list[bytes] = []

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with server(web) as url:
        with pytest.raises(BrokerUnreachableError, match="no MQTT over WebSockets at that path"):
            async with MqttLink(url=f"{url.replace('mqtt', 'ws')}/some/path?key=1", client_id="c", protocol=4):
                pass
    assert asked == [b"GET /some/path?key=1 HTTP/1.1\r\n"]


async def test_a_broker_without_websockets_is_said_so(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, pytest.raises(BrokerUnreachableError):
        async with MqttLink(url=f"ws://127.0.0.1:{broker.port}", client_id="c"):
            pass


async def test_plain_websockets_to_another_machine_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(PlaintextRefusedError):
        async with MqttLink(url="ws://192.0.2.1/mqtt", client_id="c"):
            pass
