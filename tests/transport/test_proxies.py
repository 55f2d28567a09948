from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import BrokerUnreachableError, SettingsError
from agent.transport import proxies
from agent.transport.address import BrokerAddress
from agent.transport.mqtt import MqttLink
from agent.transport.proxies import Proxy, proxy_for
from tests.transport.brokers import embedded, free_port, mosquitto
from tests.transport.conftest import take
from tests.transport.test_mqtt_tls import self_signed, trusting

FAR = BrokerAddress.parse("mqtts://broker.example")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One without proxies, to begin with."""
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_without_variables_there_is_no_proxy() -> None:
    assert proxy_for(FAR) is None


@pytest.mark.parametrize("name", ["mqtt_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "url", ["mqtt://192.0.2.1", "mqtts://broker.example", "ws://192.0.2.1", "wss://broker.example"]
)
def test_each_usual_variable_counts_for_every_kind_of_broker(
    environment: pytest.MonkeyPatch, name: str, url: str
) -> None:
    environment.setenv(name, "http://us%40er:pass@proxy.example:3128")
    proxy = proxy_for(BrokerAddress.parse(url))
    assert proxy == Proxy(kind="http", host="proxy.example", port=3128, username="us@er", password="pass")
    assert proxy is not None
    assert "pass" not in proxy.shown + repr(proxy)


def test_the_narrower_variable_comes_first(environment: pytest.MonkeyPatch) -> None:
    for name in ("all_proxy", "https_proxy", "mqtt_proxy"):
        environment.setenv(name, f"http://{name.partition('_')[0]}.example:1")
        found = proxy_for(FAR)
        assert found is not None
        assert found.host == f"{name.partition('_')[0]}.example"


def test_what_a_web_server_sets_from_a_visitors_words_does_not_count(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "http://evil.example:1")
    assert proxy_for(FAR) is None


@pytest.mark.parametrize("named", ["*", "broker.example", ".example", "other,example", "broker.example:8883"])
def test_what_no_proxy_names_is_reached_directly(environment: pytest.MonkeyPatch, named: str) -> None:
    environment.setenv("https_proxy", "http://proxy.example:3128")
    environment.setenv("no_proxy", named)
    assert proxy_for(FAR) is None


@pytest.mark.parametrize("named", ["other.example", "roker.example", "broker.example:1"])
def test_what_no_proxy_does_not_name_is_not(environment: pytest.MonkeyPatch, named: str) -> None:
    environment.setenv("https_proxy", "http://proxy.example:3128")
    environment.setenv("no_proxy", named)
    assert proxy_for(FAR) is not None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "a.localhost"])
def test_this_machine_never_lies_behind_a_proxy(environment: pytest.MonkeyPatch, host: str) -> None:
    for name in ("mqtt_proxy", "https_proxy", "all_proxy"):
        environment.setenv(name, "http://proxy.example:3128")
    assert proxy_for(BrokerAddress.parse(f"mqtt://{host}")) is None


@pytest.mark.parametrize(
    ("url", "kind", "port"),
    [
        ("proxy.example:3128", "http", 3128),
        ("http://proxy.example", "http", 80),
        ("socks5://proxy.example", "socks5", 1080),
        ("socks5h://proxy.example:9050", "socks5h", 9050),
        ("socks4a://proxy.example", "socks4a", 1080),
        ("socks://proxy.example", "socks5h", 1080),
    ],
)
def test_kinds_and_ports_of_proxies(environment: pytest.MonkeyPatch, url: str, kind: str, port: int) -> None:
    environment.setenv("all_proxy", url)
    proxy = proxy_for(FAR)
    assert proxy is not None
    assert (proxy.kind, proxy.port) == (kind, port)


@pytest.mark.parametrize("url", ["https://proxy.example", "ftp://proxy.example", "http://", "http://h:99999"])
def test_a_proxy_that_cannot_be_used_is_said_so_with_advice(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("https_proxy", url.replace("://", "://user:hunter2@"))
    with pytest.raises(SettingsError, match="https_proxy") as caught:
        proxy_for(FAR)
    assert "hunter2" not in str(caught.value)
    assert "no_proxy" in caught.value.advice


class TunnelServer:
    """A small proxy: HTTP's CONNECT and SOCKS 5, which leads every name to one port of this machine."""

    def __init__(self, port: int, *, answer: list[bytes] | None = None) -> None:
        self.target = port
        self.answer = answer or [b"HTTP/1.1 200 Connection ", b"established\r\nVia: a\r\n", b"X: y\r\n", b"\r\n"]
        self.asked: list[str] = []
        self.authorizations: list[str] = []
        self.port = 0
        self._visits: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[TunnelServer]:
        def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._visit(reader, writer))
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)

        server = await asyncio.start_server(welcome, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(self._visits):
                task.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                first = await reader.readexactly(1)
                open_to = await (self._socks(reader, writer) if first == b"\x05" else self._http(reader, writer))
                if open_to:
                    back, there = await asyncio.open_connection("127.0.0.1", self.target)
                    await asyncio.gather(_forward(reader, there), _forward(back, writer))
        finally:
            writer.transport.abort()
            if there is not None:
                there.transport.abort()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        self.asked.append(lines[0].split()[1])
        self.authorizations += [line.split(": ", 1)[1] for line in lines if line.lower().startswith("proxy-auth")]
        for piece in self.answer:  # in pieces, as the network pleases
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        return b" 200 " in b"".join(self.answer)

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x00")
        assert (await reader.readexactly(4)) == b"\x05\x01\x00\x03"  # a name, which we look up
        name = await reader.readexactly((await reader.readexactly(1))[0])
        self.asked.append(f"{name.decode()}:{int.from_bytes(await reader.readexactly(2), 'big')}")
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return True


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echoes(url: str, **options: object) -> None:
    async with MqttLink(url=url, client_id="c", allow_plaintext=True, **options) as link:  # type: ignore[arg-type]
        await link.subscribe("t")
        await link.publish("t", bytes(90_000))
        assert len((await take(link, 1))[0].payload) == 90_000


async def test_a_broker_behind_an_http_proxy_is_reached_through_its_tunnel(environment: pytest.MonkeyPatch) -> None:
    async with embedded() as broker, TunnelServer(broker.port).listening() as proxy:
        environment.setenv("https_proxy", f"http://user:hunter2@127.0.0.1:{proxy.port}")
        await echoes("mqtt://u:p@broker.example:1883")
        assert set(proxy.asked) == {"broker.example:1883"}
        assert set(proxy.authorizations) == {f"Basic {base64.b64encode(b'user:hunter2').decode()}"}


async def test_a_broker_behind_a_socks_proxy_is_reached_and_its_name_looked_up_there(
    environment: pytest.MonkeyPatch,
) -> None:
    async with embedded() as broker, TunnelServer(broker.port).listening() as proxy:
        environment.setenv("all_proxy", f"socks5h://127.0.0.1:{proxy.port}")
        await echoes("mqtt://u:p@broker.example:1883")
        assert set(proxy.asked) == {"broker.example:1883"}


async def test_through_a_tunnel_tls_is_agreed_on_with_the_broker_itself(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path, "broker.example")
    config = ["allow_anonymous true", f"certfile {certificate}", f"keyfile {key}", "user root"]
    with mosquitto(tmp_path, config) as broker:
        async with TunnelServer(broker.port).listening() as proxy:
            environment.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            await echoes("mqtts://broker.example:8883", tls=trusting(certificate))
            with pytest.raises(BrokerUnreachableError, match="certificate"):
                await echoes("mqtts://other.example:8883", tls=trusting(certificate))


async def test_a_proxy_that_says_no_is_named_without_its_credentials(environment: pytest.MonkeyPatch) -> None:
    refusal = [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"]
    async with TunnelServer(1, answer=refusal).listening() as proxy:
        environment.setenv("https_proxy", f"http://user:hunter2@127.0.0.1:{proxy.port}")
        with pytest.raises(BrokerUnreachableError, match=rf"proxy http://127\.0\.0\.1:{proxy.port}.*407") as caught:
            await echoes("mqtts://broker.example")
    assert "hunter2" not in str(caught.value)


async def test_a_proxy_that_is_not_there_is_said_so(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnreachableError, match=r"proxy .* refused"):
        await echoes("mqtts://broker.example")


async def test_a_broker_on_this_machine_is_reached_directly_whatever_the_environment_says(
    environment: pytest.MonkeyPatch,
) -> None:
    """paho by itself would go to ``mqtt_proxy`` for it, if a SOCKS library is installed."""
    async with embedded() as broker, TunnelServer(broker.port).listening() as proxy:
        for scheme in (*proxies.SCHEMES, "http"):
            environment.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.port}")
        await echoes(f"mqtt://u:p@127.0.0.1:{broker.port}")
        assert proxy.asked == []


async def test_a_proxy_that_cannot_be_used_stops_the_link_before_anything_is_sent(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("https_proxy", "https://proxy.example")
    with pytest.raises(SettingsError):
        await echoes("mqtts://broker.example")
