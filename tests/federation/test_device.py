"""The whole device over the broker in memory, at a real hub; only its workers are made up."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from agent.crypto.identity import Identity
from agent.data.sources import survey
from agent.events import Events
from agent.federation.device import Device
from agent.federation.fetching import Fetcher
from agent.federation.store import DeviceStore, open_device_store
from agent.paths import Home, exclusive
from agent.service import add_source, device_status
from agent.settings import DeviceSettings
from agent.training.job import EvaluateJob
from agent.training.process import Workers
from agent.transport.memory import MemoryLink
from engines.synthetic import synthetic_workers
from tests.hub.world import Heard, World


@dataclass
class Losses:
    """Workers whose judgement is put into their mouths: held-out losses by position, the current release first."""

    found: tuple[float, ...] = (2.0, 1.9)
    judged: list[tuple[str, ...]] = field(default_factory=list)

    def workers(self) -> Workers:
        synthetic = synthetic_workers()

        async def work(job: Any, **options: Any) -> Any:
            result = await synthetic(job, **options)
            if isinstance(job, EvaluateJob):
                self.judged.append(tuple(result.losses))
                losses = dict(zip(result.losses, self.found, strict=False))
                return result.model_copy(update={"losses": losses})
            return result

        return cast("Workers", work)


async def join(world: World, directory: Path) -> Home:
    """Let a device with text join a running hub, and give its home."""
    async with world.member(directory):
        pass
    text = directory.with_name(f"text-of-{directory.name}")
    text.mkdir()
    (text / "note.txt").write_text("Made-up workers do not read this.\n")
    add_source(Home(directory), text, survey([text]))
    return Home(directory)


@contextlib.asynccontextmanager
async def running(
    world: World, home: Home, losses: Losses, link: type[MemoryLink] = MemoryLink
) -> AsyncIterator[tuple[DeviceStore, Heard]]:
    """Run a device while the context lasts, and look that it did not end by itself."""
    heard, identity = Heard(), Identity.load(home.keys)
    with open_device_store(home) as store:
        device = Device(
            store=store,
            identity=identity,
            settings=DeviceSettings(resend_seconds=0.2, personal_adapter=False),
            link=link(broker=world.broker, client_id=identity.id, username=identity.id),
            events=Events(quiet=True, listeners=[heard]),
            workers=losses.workers(),
        )
        task = asyncio.create_task(device.run())
        try:
            yield store, heard
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("after", [math.nan, math.inf, 5000.0])
async def test_candidate_whose_loss_is_no_number_is_judged_as_the_worst_there_is(
    world: World, tmp_path: Path, after: float
) -> None:
    losses = Losses((2.0, after))
    async with world.hub() as hub, running(world, await join(world, tmp_path / "ada"), losses) as (store, _heard):
        rejected = await world.heard.until("rejected")
        assert "worse" in rejected["reason"]
        (verdict,) = hub.verdicts_of(1).values()
        assert (verdict.before, verdict.after) == (2.0, 1000.0)
        assert store.adopted() == (0, hub.current().manifest.sha256)


async def test_waits_for_an_adapter_are_short_again_after_a_new_connection_and_a_new_word_of_the_hub(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew: list[int] = []
    async with world.hub():
        home = await join(world, tmp_path / "ada")
    async with running(world, home, Losses()) as (_store, heard):
        await heard.until("fetching")
        monkeypatch.setattr(Fetcher, "begin_anew", lambda _self: anew.append(1))
        links, words = len(heard.all("link")), len(heard.all("announcement"))
        world.broker.go_down()
        await heard.until("link", links + 1)
        assert not anew
        world.broker.come_back()
        await heard.until("link", links + 2)
        assert len(anew) == 1
        async with world.hub():
            await heard.until("announcement", words + 1)
            assert len(anew) > 1


async def test_broker_that_drops_chunks_without_a_word_is_told_of_in_an_event_and_the_status(
    world: World, tmp_path: Path
) -> None:
    swallowing = True

    class Swallowing(MemoryLink):
        async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
            if not (swallowing and topic.endswith("/chunk")):
                await super().publish(topic, payload, retain=retain)

    async with world.hub():
        home = await join(world, tmp_path / "ada")
        async with running(world, home, Losses(), Swallowing) as (_store, heard):
            await heard.until("not-arriving")
            with exclusive(home):
                assert "message_size_limit" in str(device_status(home)["not_arriving"])
                swallowing = False
                await heard.until("arriving")
                assert "not_arriving" not in device_status(home)


async def test_rejected_candidates_do_not_pile_up_on_the_disk(world: World, tmp_path: Path) -> None:
    losses = Losses((2.0, 3.0))
    async with world.hub() as hub, running(world, await join(world, tmp_path / "ada"), losses) as (store, heard):
        await world.heard.until("rejected", 4)
        await heard.until("judged", 5)
        trained = str(store.rounds()[-1].report["trained"])
        candidate = hub.candidate(5)
        here = {path.name for path in store.home.blobs.iterdir()}
        assert here <= {hub.current().manifest.sha256, trained, candidate.manifest.sha256 if candidate else ""}


async def test_every_line_names_device_and_round_also_after_a_restart(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await join(world, tmp_path / "ada")
        async with running(world, home, Losses()) as (_store, heard):
            await heard.until("judged")
        async with running(world, home, Losses()) as (store, heard):
            ready = await heard.until("device-ready")
            assert store.announcement is not None
            assert ready["round"] == store.announcement.round
            assert ready["device"] == Identity.load(home.keys).id
