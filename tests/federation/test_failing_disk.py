"""The running device, over the broker in memory: what it does when its own disk turns against it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import agent.federation.device
from agent.crypto.identity import Identity
from agent.errors import DiskFullError
from agent.events import Events
from agent.federation.device import Device
from agent.federation.store import DeviceStore, Membership, open_device_store
from agent.governance.charter import Charter
from agent.paths import Home
from agent.settings import DeviceSettings
from agent.transport.memory import MemoryBroker, MemoryLink

CHARTER = Charter(name="street", base_name="b", base_sha256="0" * 64, base_bytes=1)


@dataclass
class Alone:
    """A member whose hub says nothing."""

    device: Device
    store: DeviceStore
    broker: MemoryBroker
    waits: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, name: str, _fields: dict[str, Any]) -> None:
        if name == "waiting":
            self.waits.set()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    home, broker, events = Home(tmp_path), MemoryBroker(), Events(quiet=True)
    home.create()
    membership = Membership(
        community="c" * 32,
        broker="mqtt://127.0.0.1:1",
        hub=Identity.generate().public.encode(),
        username="",
        password="",
        base=tmp_path / "base.gguf",
        charter=CHARTER,
        joined=0,
    )
    with open_device_store(home, create=True) as store:
        store.save_membership(membership)
        device = Device(
            store=store,
            identity=Identity.generate(),
            settings=DeviceSettings(),
            link=MemoryLink(broker=broker, client_id="device"),
            events=events,
        )
        made = Alone(device, store, broker)
        events.listeners.append(made)
        yield made


def full(*_arguments: object) -> Any:
    raise DiskFullError("no room on the disk", advice="Free some space.")


async def test_a_device_that_cannot_write_down_a_break_of_its_link_ends_and_does_not_wait_for_ever(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.create_task(alone.device.run())
    async with asyncio.timeout(10):
        await alone.waits.wait()
        monkeypatch.setattr(alone.store, "save_status", full)
        alone.broker.go_down()
        alone.broker.come_back()
        with pytest.raises(ExceptionGroup) as caught:
            await running
    assert caught.group_contains(DiskFullError)


async def test_a_disk_that_is_full_for_a_moment_does_not_end_the_watch_over_consent(
    alone: Alone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[list[Path] | None] = [None, None, [tmp_path], []]

    def look() -> list[Path]:
        sources = found.pop(0)
        return full() if sources is None else sources

    monkeypatch.setattr(agent.federation.device, "CONSENT_SECONDS", 0.0)
    monkeypatch.setattr(alone.device, "_sources", look)
    async with asyncio.timeout(10):
        await alone.device._watch_consent([tmp_path])
    assert alone.device._stop_training.is_set()
