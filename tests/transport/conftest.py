from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.transport.access import allowed
from agent.transport.link import Link, Message
from agent.transport.memory import MemoryBroker, MemoryLink
from agent.transport.mqtt import MqttLink, Version
from tests.transport.brokers import Mosquitto, embedded, mosquitto

COMMUNITY = "0123456789abcdef0123456789abcdef"
ALICE = "a" * 52
BOB = "b" * 52
PASSWORD = "right"

ACL = f"""
user hub
topic readwrite bramble/{COMMUNITY}/#
pattern write bramble/{COMMUNITY}/from/%u/+
pattern write bramble/{COMMUNITY}/life/%u
pattern read bramble/{COMMUNITY}/to/%u/+
pattern read bramble/{COMMUNITY}/hub/+
"""

FAST = (0.01, 0.05)


@dataclass(kw_only=True)
class Net:
    """A broker with the community's access rules, and links to it."""

    name: str
    make: Callable[..., Link]
    go_down: Callable[[], Awaitable[None]]
    come_back: Callable[[], Awaitable[None]]
    keeps_sessions: bool
    """Whether sessions outlive the broker's outage."""

    def link(self, user: str, **options: Any) -> Link:
        return self.make(user, **options)

    def cut(self, link: Link) -> None:
        """Break one connection without farewell."""
        if isinstance(link, MemoryLink):
            link.cut()
        else:
            assert isinstance(link, MqttLink)
            assert link._client is not None
            link._client.cut()

    @property
    def refuses_publishes(self) -> bool:
        return self.name == "mosquitto-5"


async def take(link: Link, count: int, *, ack: bool = True) -> list[Message]:
    """The next messages, all of them within ten seconds."""
    taken: list[Message] = []
    async with asyncio.timeout(10):
        async for message in link.messages():
            if ack:
                message.ack()
            taken.append(message)
            if len(taken) == count:
                return taken
    raise AssertionError("the link closed")


@contextlib.asynccontextmanager
async def _memory() -> AsyncIterator[Net]:
    broker = MemoryBroker(
        allowed=lambda user, action, topic: allowed(user, action, topic, COMMUNITY),
        authenticate=lambda _user, password: password == PASSWORD,
    )

    def make(user: str, *, client_id: str | None = None, password: str = PASSWORD, **options: Any) -> Link:
        return MemoryLink(broker=broker, client_id=client_id or user, username=user, password=password, **options)

    async def down() -> None:
        broker.go_down()

    async def back() -> None:
        broker.come_back()

    yield Net(name="memory", make=make, go_down=down, come_back=back, keeps_sessions=True)


@contextlib.asynccontextmanager
async def _embedded() -> AsyncIterator[Net]:
    stack = contextlib.AsyncExitStack()
    options: dict[str, Any] = {
        "allowed": lambda user, action, topic: allowed(user, action, topic, COMMUNITY),
        "authenticate": lambda _user, password: password == PASSWORD,
    }
    port = 0

    async def back() -> None:
        nonlocal port
        port = (await stack.enter_async_context(embedded(port=port, **options))).port

    def make(user: str, *, client_id: str | None = None, password: str = PASSWORD, **more: Any) -> Link:
        return MqttLink(
            url=f"mqtt://127.0.0.1:{port}",
            client_id=client_id or user,
            username=user,
            password=password,
            backoff=FAST,
            **more,
        )

    await back()
    async with stack:
        yield Net(name="embedded", make=make, go_down=stack.aclose, come_back=back, keeps_sessions=False)


@contextlib.asynccontextmanager
async def _mosquitto(directory: Path, version: Version) -> AsyncIterator[Net]:
    (directory / "acl").write_text(ACL)
    (directory / "acl").chmod(0o600)
    with mosquitto(directory, ["allow_anonymous true", f"acl_file {directory / 'acl'}", "user root"]) as broker:
        yield _over_mosquitto(broker, version)


def _over_mosquitto(broker: Mosquitto, version: Version) -> Net:
    def make(user: str, *, client_id: str | None = None, password: str = PASSWORD, **more: Any) -> Link:
        return MqttLink(
            url=broker.url,
            client_id=client_id or user,
            username=user,
            password=password,
            backoff=FAST,
            protocol=version,
            **more,
        )

    async def down() -> None:
        await asyncio.to_thread(broker.kill)

    async def back() -> None:
        await asyncio.to_thread(broker.start)

    return Net(name=f"mosquitto-{version}", make=make, go_down=down, come_back=back, keeps_sessions=False)


@pytest.fixture(params=["memory", "embedded", "mosquitto-5", "mosquitto-3.1.1"])
async def net(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Net]:
    nets: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[Net]]] = {
        "memory": _memory,
        "embedded": _embedded,
        "mosquitto-5": lambda: _mosquitto(tmp_path, 5),
        "mosquitto-3.1.1": lambda: _mosquitto(tmp_path, 4),
    }
    async with nets[request.param]() as made:
        yield made
