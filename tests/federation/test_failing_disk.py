"""The running device, over the broker in memory: what it does when its own disk turns against it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.crypto.identity import Identity
from agent.errors import DiskFullError
from agent.events import Events
from agent.federation.device import Device
from agent.federation.store import Membership, open_device_store
from agent.governance.charter import Charter
from agent.paths import Home
from agent.settings import DeviceSettings
from agent.transport.memory import MemoryBroker, MemoryLink

CHARTER = Charter(name="street", base_name="b", base_sha256="0" * 64, base_bytes=1)


async def test_a_device_that_cannot_write_down_a_break_of_its_link_ends_and_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, hub, broker = Home(tmp_path), Identity.generate(), MemoryBroker()
    home.create()
    membership = Membership(
        community="c" * 32,
        broker="mqtt://127.0.0.1:1",
        hub=hub.public.encode(),
        username="",
        password="",
        base=tmp_path / "base.gguf",
        charter=CHARTER,
        joined=0,
    )
    told = asyncio.Event()

    def heard(name: str, _fields: dict[str, Any]) -> None:
        if name == "waiting":
            told.set()

    def full(*_arguments: object) -> None:
        raise DiskFullError("no room on the disk", advice="Free some space.")

    with open_device_store(home, create=True) as store:
        store.save_membership(membership)
        device = Device(
            store=store,
            identity=Identity.generate(),
            settings=DeviceSettings(),
            link=MemoryLink(broker=broker, client_id="device"),
            events=Events(quiet=True, listeners=[heard]),
        )
        running = asyncio.create_task(device.run())
        async with asyncio.timeout(10):
            await told.wait()
            monkeypatch.setattr(store, "save_status", full)
            broker.go_down()
            broker.come_back()
            with pytest.raises(ExceptionGroup) as caught:
                await running
    assert caught.group_contains(DiskFullError)
