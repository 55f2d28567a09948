"""Leaving, from both sides, over the broker in memory: killed anywhere, without a hub, and with everything removed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.crypto import keyfile
from agent.errors import LeavingError, NotJoinedError
from agent.federation import leaving
from agent.federation.leaving import begin, erase, tell
from agent.federation.standing import farewell, require_part, save_farewell
from agent.federation.store import DeviceStore, open_device_store
from agent.paths import Home
from agent.transport.memory import MemoryLink
from tests.hub.world import World, make_world


class KilledError(Exception):
    """The process was killed here."""


async def joined(world: World, directory: Path) -> Home:
    """Let a device join a running hub, and have an update of its wait for the merge."""
    async with world.member(directory) as ada:
        opened = await ada.phase("open")
        release = await ada.fetch(opened)
        ada.send_update(opened, release, ada.made_up(release))
        await ada.until(lambda: [receipt for receipt in ada.receipts if receipt.state == "done"])
    home = Home(directory)
    (home.work / "adapters").mkdir(parents=True)
    (home.work / "adapters" / "personal.gguf").write_bytes(b"what the owner's text taught it")
    home.settings.write_text('nickname = "ada"\n')
    home.models.mkdir()
    (home.models / "base.gguf").write_bytes(b"large, and nobody's secret")
    return home


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "AGAIN_SECONDS", 0.1)


def link_of(world: World, store: DeviceStore) -> MemoryLink:
    device = keyfile.read(store.home.keys, "device").public.id
    return MemoryLink(broker=world.broker, client_id=device, username=device)


@pytest.mark.usefixtures("patient")
async def test_hub_drops_what_waits_of_a_device_that_leaves_and_stops_counting_on_it(
    tmp_path: Path, tiny_q8: Path
) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, quorum=2, target=2)  # so that one update waits
    async with world.hub() as hub:
        home = await joined(world, tmp_path / "ada")
        with open_device_store(home) as store:
            begun = begin(store, erase=False)
            assert await tell(store, keyfile.load(home.keys), link_of(world, store), begun) == ""
            told = farewell(store)
            assert told is not None
            assert told.told
            with pytest.raises(LeavingError):
                require_part(store)
            save_farewell(store, told.model_copy(update={"done": True}))
            with pytest.raises(NotJoinedError, match="has left"):
                require_part(store)
        assert hub.devices() == []
        assert [row.state for row in hub.updates()] == ["withdrawn"]
        assert not hub.updates_in(1, "waiting")
        assert world.heard.all("device-left")[0]["dropped"] == 1


@pytest.mark.usefixtures("patient")
async def test_device_whose_answer_was_lost_says_again_that_it_leaves_and_is_answered(
    world: World, tmp_path: Path
) -> None:
    async with world.hub() as hub:
        home = await joined(world, tmp_path / "ada")
        with open_device_store(home) as store:
            begun, identity = begin(store, erase=False), keyfile.load(home.keys)
            for _ in range(2):
                assert await tell(store, identity, link_of(world, store), begun) == ""
        assert [row.standing for row in hub.everybody()] == ["left"]
        assert len(world.heard.all("device-left")) == 1


@pytest.mark.usefixtures("patient")
async def test_hub_that_does_not_answer_is_waited_for_no_longer_than_was_said(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    with open_device_store(home) as store:
        begun = begin(store, erase=True)
        why = await tell(store, keyfile.load(home.keys), link_of(world, store), begun, patience=0.3)
        assert "did not answer" in why
        assert not farewell(store).told  # type: ignore[union-attr]
        erase(home, store)
    assert [path.name for path in home.root.iterdir()] == ["models"]


STEPS = ("work", "keys", "settings", "database")


@contextlib.contextmanager
def killed_before(step: str, monkeypatch: pytest.MonkeyPatch, home: Home) -> Iterator[None]:
    """Die right before something is removed."""
    rmtree, unlink = shutil.rmtree, Path.unlink
    marks = {"work": home.work, "keys": home.keys, "settings": home.settings, "database": home.database}

    def dying(real: Any) -> Any:
        def remove(path: Path, *arguments: Any, **options: Any) -> Any:
            mark = marks.get(step)
            if mark is not None and (Path(path) == mark or mark in Path(path).parents):
                raise KilledError
            return real(path, *arguments, **options)

        return remove

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dying(rmtree))
        patched.setattr(Path, "unlink", dying(unlink))
        yield


@pytest.mark.parametrize("step", STEPS)
async def test_erasing_that_was_killed_anywhere_is_finished_the_next_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    with open_device_store(home) as store:
        begin(store, erase=True)
        with killed_before(step, monkeypatch, home), contextlib.suppress(KilledError):
            erase(home, store)
    if home.database.exists():
        with open_device_store(home) as store:
            begun = farewell(store)
            assert begun is not None
            assert begun.erase  # so that nothing runs on half a device
            with pytest.raises(LeavingError):
                require_part(store)
            assert begin(store, erase=False) == begun
            erase(home, store)
    assert [path.name for path in home.root.iterdir()] == ["models"]


async def test_leave_that_was_killed_before_it_was_written_down_has_not_begun(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    with open_device_store(home) as store:
        before = store.rounds()

        def killed(*_arguments: object) -> None:
            raise KilledError

        with monkeypatch.context() as patched:
            patched.setattr(DeviceStore, "put_fact", killed)
            with pytest.raises(KilledError):
                begin(store, erase=True)
        assert farewell(store) is None
        assert store.rounds() == before
        require_part(store)
