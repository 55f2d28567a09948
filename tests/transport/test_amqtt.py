"""Why the embedded broker has a heart of its own: what amqtt's own broker gets wrong, beside ours getting it right.

The failures are expected strictly: a version of amqtt that no longer has one of these faults fails its test, and
``agent/transport/embedded.py`` can be shortened by that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import NetworkError
from agent.transport.access import allowed
from agent.transport.link import Presence
from agent.transport.mqtt import MqttLink
from agent.transport.topics import Topics
from tests.transport.amqtt_broker import COMMUNITY
from tests.transport.brokers import amqtt, embedded
from tests.transport.conftest import ALICE, BOB, FAST, PASSWORD, take

T = Topics(COMMUNITY)

PATIENCE = {"embedded": 10.0, "amqtt": 2.5}
"""Seconds in which what was promised happens. Ours may be on a busy machine; from theirs it does not come at all."""


@pytest.fixture
async def port(kind: str, tmp_path: Path) -> AsyncIterator[int]:
    if kind == "amqtt":
        with amqtt(tmp_path) as theirs:
            yield theirs.port
        return
    options: dict[str, Any] = {
        "authenticate": lambda _user, password: password == PASSWORD,
        "allowed": lambda user, action, topic: allowed(user, action, topic, COMMUNITY),
    }
    async with embedded(**options) as ours:
        yield ours.port


def link(port: int, user: str, **options: Any) -> MqttLink:
    settings: dict[str, Any] = {"client_id": user, "username": user, "password": PASSWORD, "backoff": FAST}
    return MqttLink(url=f"mqtt://127.0.0.1:{port}", protocol=4, **(settings | options))


def fault_of_amqtt(reason: str) -> pytest.MarkDecorator:
    expected = pytest.mark.xfail(reason=f"amqtt {reason}", strict=True, raises=(AssertionError, TimeoutError))
    theirs = pytest.param("amqtt", marks=expected)
    return pytest.mark.parametrize("kind", ["embedded", theirs])


@fault_of_amqtt("forgets a message that its receiver did not acknowledge before it was cut off")
async def test_a_message_that_was_under_way_at_a_break_comes_again(port: int, kind: str) -> None:
    async with link(port, "hub") as hub, link(port, ALICE) as alice:
        await hub.subscribe(T.all_from())
        await alice.publish(T.from_(ALICE, "update"), b"lost")
        await take(hub, 1, ack=False)
        assert hub._client is not None
        hub._client.cut()
        within = PATIENCE[kind]
        assert [message.payload for message in await take(hub, 1, within=within)] == [b"lost"]


@fault_of_amqtt("hands a client what others subscribed to and is retained, when it connects")
async def test_who_connects_gets_no_retained_message_that_it_did_not_ask_for(port: int) -> None:
    async with link(port, "hub") as hub, link(port, ALICE) as alice:
        await hub.publish(T.hub("card"), b"not asked for", retain=True)
        await alice.subscribe(T.hub("card"))
        await take(alice, 1)
        async with link(port, BOB) as bob:
            await bob.subscribe(T.all_to(BOB))
            await hub.publish(T.to(BOB, "receipt"), b"asked for")
            assert [message.payload for message in await take(bob, 1)] == [b"asked for"]


@fault_of_amqtt("publishes wills past the access rules")
async def test_a_will_cannot_say_what_its_client_may_not(port: int) -> None:
    forged = Presence(topic=T.to(ALICE, "receipt"), birth=b"forged", will=b"forged")
    async with link(port, "hub") as hub, link(port, ALICE) as alice:
        await alice.subscribe(T.all_to(ALICE))
        async with link(port, BOB, presence=lambda: forged) as bob:
            await bob.subscribe(T.all_to(BOB))
            assert bob._client is not None
            bob._client.cut()
            await asyncio.sleep(0)
            await bob.publish(T.from_(BOB, "x"), b"")  # it is back, so its will was published
        await hub.publish(T.to(ALICE, "receipt"), b"true")
        assert [message.payload for message in await take(alice, 1)] == [b"true"]


@fault_of_amqtt("cuts off the owner of a session before it looks at the password of who wants it")
async def test_a_wrong_password_does_not_cut_off_the_owner_of_the_session(port: int) -> None:
    async with link(port, "hub") as owner:
        breaks: list[str] = []
        await owner.subscribe(T.all_from())
        owner.on_state(lambda state: breaks.append(state.reason))
        with contextlib.suppress(NetworkError):
            async with link(port, "hub", password="wrong"):
                pytest.fail("a wrong password was let in")
        await owner.publish(T.from_(ALICE, "x"), b"fence")
        await take(owner, 1)
        assert breaks == []


@fault_of_amqtt("keeps a connection that fell silent for ever")
async def test_a_client_that_falls_silent_is_sent_away(port: int, kind: str) -> None:
    password = len(PASSWORD).to_bytes(2, "big") + PASSWORD.encode()
    body = b"\x00\x04MQTT\x04\xc2\x00\x01" + b"\x00\x01s" + b"\x00\x03hub" + password  # a keepalive of one second
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"\x10" + bytes([len(body)]) + body)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        async with asyncio.timeout(PATIENCE[kind]):
            assert await reader.read(1) == b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
