"""Several brokers in one setting, and a link that waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import BrokerRefusedError, BrokerUnreachableError, PlaintextRefusedError
from agent.transport.link import LinkState
from agent.transport.mqtt import MqttLink
from tests.transport.brokers import embedded, free_port, mosquitto
from tests.transport.conftest import FAST, take

ACCEPTED = b"\x20\x02\x00\x00"
BAD_CREDENTIALS = b"\x20\x02\x00\x04"


class Impostor:
    """Something that listens, keeps what it is told, and answers each connection with the same words."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heard: list[bytes] = []
        self.heard_often = asyncio.Event()
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Impostor]:
        server = await asyncio.start_server(self._visit, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            self.heard.append(await reader.read(1000))
            if len(self.heard) >= 5:
                self.heard_often.set()
            writer.write(self.answer)
            if self.answer == ACCEPTED:
                await reader.read()
        writer.close()


async def test_the_first_broker_that_answers_is_used_and_named() -> None:
    async with embedded() as second, embedded() as third:
        urls = ",".join(f"mqtt://u:p@127.0.0.1:{port}" for port in (free_port(), second.port, third.port))
        states: list[LinkState] = []
        link = MqttLink(url=urls, client_id="c")
        link.on_state(states.append)
        async with link:
            assert link.address.port == second.port
            assert [(state.connected, state.broker) for state in states] == [(True, f"mqtt://127.0.0.1:{second.port}")]


async def test_after_a_break_they_are_tried_in_order_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as first, mosquitto(tmp_path) as second:
        states: asyncio.Queue[LinkState] = asyncio.Queue()

        async def until_at(url: str) -> None:
            while (state := await states.get()).broker != url or not state.connected:
                pass

        async with MqttLink(url=f"{first.url},{second.url}", client_id="c", backoff=FAST) as link, asyncio.timeout(20):
            link.on_state(states.put_nowait)
            await link.subscribe("t")
            assert link.address.shown == first.url
            await asyncio.to_thread(first.kill)
            await link.publish("u", b"nobody listens there, and it is taken all the same")
            await until_at(second.url)
            await link.subscribe("fence")  # behind it, the link has asked for its topics again
            await link.publish("t", b"over the second")
            assert [message.payload for message in await take(link, 1)] == [b"over the second"]
            await asyncio.to_thread(first.start)
            assert link.connected  # and stays where it is
            await asyncio.to_thread(second.kill)
            await until_at(first.url)
            await link.subscribe("another fence")
            await link.publish("t", b"over the first")
            assert [message.payload for message in await take(link, 1)] == [b"over the first"]


async def test_one_wait_is_drawn_for_a_pass_over_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    heard: list[list[int]] = []

    async with contextlib.AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(Impostor(b"").listening()) for _ in range(3)]
        enough = asyncio.Event()

        def wait() -> float:
            nonlocal passes
            passes += 1
            heard.append([len(broker.heard) for broker in brokers])
            if passes == 4:
                enough.set()
            return 0.0

        urls = ",".join(f"mqtt://127.0.0.1:{broker.port}" for broker in brokers)
        link = MqttLink(url=urls, client_id="c", protocol=4, patient=True)
        monkeypatch.setattr(link._mender._backoff, "wait", wait)
        async with link, asyncio.timeout(10):
            await enough.wait()
    assert heard[:4] == [[number] * 3 for number in (1, 2, 3, 4)]


async def test_each_broker_hears_its_own_credentials_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(Impostor(BAD_CREDENTIALS).listening()) for _ in range(2)]
        last = await stack.enter_async_context(Impostor(ACCEPTED).listening())
        urls = (
            f"mqtt://ann:one1@127.0.0.1:{first.port},mqtt://127.0.0.1:{second.port},"
            f"mqtt://cid:three3@127.0.0.1:{last.port}"
        )
        states: list[LinkState] = []
        link = MqttLink(url=urls, client_id="c", username="bob", password="two2", protocol=4)
        link.on_state(states.append)
        async with link:
            pass
        with pytest.raises(BrokerRefusedError) as caught:
            async with MqttLink(url=urls.rpartition(",")[0], client_id="c", username="bob", password="two2"):
                pass
    secrets = {b"ann", b"one1", b"bob", b"two2", b"cid", b"three3"}
    for broker, own in ((first, {b"ann", b"one1"}), (second, {b"bob", b"two2"}), (last, {b"cid", b"three3"})):
        assert {secret for secret in secrets if any(secret in heard for heard in broker.heard)} == own
    told = f"{states} {caught.value} {caught.value.advice} {caplog.text}"
    assert not any(secret.decode() in told for secret in secrets)


async def test_where_none_can_be_used_each_is_named_with_its_reason() -> None:
    async with Impostor(BAD_CREDENTIALS).listening() as impostor:
        nobody, somebody = f"mqtt://127.0.0.1:{free_port()}", f"mqtt://127.0.0.1:{impostor.port}"
        with pytest.raises(BrokerRefusedError) as caught:
            async with MqttLink(url=f"{nobody},{somebody}", client_id="c"):
                pass
        assert f"{nobody} cannot be reached" in str(caught.value)
        assert f"{somebody} refused the connection: user name or password are wrong" in str(caught.value)
        assert "joining again" in caught.value.advice
        with pytest.raises(BrokerUnreachableError):
            async with MqttLink(url=f"{nobody},{nobody}", client_id="c"):
                pass


async def test_one_url_without_encryption_is_enough_to_refuse_the_list() -> None:
    with pytest.raises(PlaintextRefusedError, match=r"b\.example"):
        async with MqttLink(url="mqtts://a.example,mqtt://b.example", client_id="c"):
            pass


async def test_a_patient_link_goes_on_while_one_broker_may_still_come() -> None:
    """One broker does not want it, the other does not answer: that one may."""
    async with Impostor(BAD_CREDENTIALS).listening() as impostor:
        port = free_port()
        urls = f"mqtt://127.0.0.1:{impostor.port},mqtt://u:p@127.0.0.1:{port}"
        async with MqttLink(url=urls, client_id="c", patient=True, backoff=FAST) as link:
            assert not link.connected
            async with embedded(port=port), asyncio.timeout(10):
                await link.publish("t", b"")
                assert link.address.port == port


async def test_a_wait_is_told_once_and_not_at_every_attempt() -> None:
    states: list[LinkState] = []
    async with Impostor(b"").listening() as impostor:
        link = MqttLink(url=f"mqtt://127.0.0.1:{impostor.port}", client_id="c", patient=True, backoff=FAST, protocol=4)
        link.on_state(states.append)
        async with link, asyncio.timeout(10):
            await impostor.heard_often.wait()
    assert [state.reason for state in states] == [
        f"waiting for the broker (mqtt://127.0.0.1:{impostor.port}: it hung up without a word)"
    ]


async def test_a_fleet_that_lost_its_broker_comes_back_spread_over_the_wait(tmp_path: Path) -> None:
    """After an orderly restart, too: nothing comes back at once."""
    with mosquitto(tmp_path) as broker:
        links = [MqttLink(url=broker.url, client_id=f"c{number}", backoff=(1.5, 1.5)) for number in range(25)]
        back: list[float] = []
        everybody = asyncio.Event()

        def changed(state: LinkState) -> None:
            if state.connected:
                back.append(asyncio.get_running_loop().time())
                if len(back) == len(links):
                    everybody.set()

        async with contextlib.AsyncExitStack() as stack:
            await asyncio.gather(*(stack.enter_async_context(link) for link in links))
            for link in links:
                link.on_state(changed)
            await asyncio.to_thread(broker.stop)
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(20):
                await everybody.wait()
    assert max(back) - min(back) > 0.6
    assert max(sum(0 <= later - when < 0.1 for later in back) for when in back) < len(links) / 2
