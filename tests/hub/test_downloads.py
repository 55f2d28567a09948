from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agent.hub.downloads
from agent.crypto.sealing import open_stream
from agent.errors import StateError
from agent.federation.messages import Manifest
from agent.hub.downloads import Download, Downloads
from agent.hub.store import ReleaseRow
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.paths import BlobStore
from agent.testing import random_adapter
from agent.update.delta import Delta
from agent.update.release import unpack
from tests.hub.world import make_world

SHAPES = {ModulePath("model.layers.0.mlp.up_proj"): (512, 256)}
FIRST = random_adapter(rank=16, seed=1, shapes=SHAPES)
SECOND = replace(
    FIRST, modules={name: LoraFactors(a=f.a, b=f.b + np.float32(0.5)) for name, f in FIRST.modules.items()}
)
OTHER = random_adapter(rank=16, seed=2, shapes=SHAPES)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def row(blobs: BlobStore, adapter: Adapter, number: int = 1, secret: bytes = bytes(32)) -> ReleaseRow:
    data = adapter.to_bytes()
    manifest = Manifest(number=number, sha256=blobs.put(data), parent="", size=len(data), round=number)
    return ReleaseRow(manifest=manifest, content_key=secret, state="promoted", updates=())


def opened(download: Download, size: int, blobs: BlobStore) -> bytes:
    content = open_stream(download.chunks, download.key, download.size)
    return unpack(content, size, blobs.get)


def test_without_anything_to_start_from_the_whole_comes_and_is_the_adapter_to_the_bit(blobs: BlobStore) -> None:
    release = row(blobs, FIRST)
    download = Downloads(blobs).smallest(release, [])
    assert opened(download, release.manifest.size, blobs) == FIRST.to_bytes()
    assert download.size < release.manifest.size


def test_the_difference_comes_where_it_is_smaller_and_gives_the_same_bytes(blobs: BlobStore) -> None:
    first, second, other = (row(blobs, adapter) for adapter in (FIRST, SECOND, OTHER))
    downloads = Downloads(blobs)
    whole = downloads.smallest(second, [])
    difference = downloads.smallest(second, [other.manifest.sha256, first.manifest.sha256])
    assert difference.size < 0.7 * whole.size
    assert opened(difference, second.manifest.size, blobs) == SECOND.to_bytes()


def test_a_difference_that_is_larger_or_cannot_be_made_is_not_sent(blobs: BlobStore) -> None:
    second, other = row(blobs, SECOND), row(blobs, OTHER)
    longer = row(blobs, random_adapter(rank=17, shapes=SHAPES))
    downloads = Downloads(blobs)
    whole = downloads.smallest(second, [])
    for base in (other.manifest.sha256, longer.manifest.sha256, "f" * 64):
        assert downloads.smallest(second, [base]) == whole


def test_two_forms_and_two_releases_have_keys_of_their_own(blobs: BlobStore) -> None:
    first, second = row(blobs, FIRST), row(blobs, SECOND)
    downloads = Downloads(blobs)
    keys = {
        downloads.smallest(second, []).key,
        downloads.smallest(second, [first.manifest.sha256]).key,
        downloads.smallest(first, []).key,
        downloads.smallest(row(blobs, OTHER), []).key,
        Downloads(blobs).smallest(row(blobs, SECOND, secret=b"\1" * 32), []).key,
    }
    assert len(keys) == 5


def test_a_form_is_made_once_and_is_the_same_after_a_restart(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    release = row(blobs, FIRST)
    made: list[int] = []
    pack = agent.hub.downloads.pack_whole

    def counted(data: bytes) -> bytes:
        made.append(len(data))
        return pack(data)

    monkeypatch.setattr(agent.hub.downloads, "pack_whole", counted)
    downloads = Downloads(blobs)
    again = [downloads.smallest(release, []) for _ in range(50)]
    assert len(made) == 1
    assert again[0] == Downloads(blobs).smallest(release, [])


def test_memory_does_not_grow_with_what_is_asked_for(blobs: BlobStore) -> None:
    rows = [row(blobs, random_adapter(rank=16, seed=seed, shapes=SHAPES), seed) for seed in range(8)]
    one = Downloads(blobs).smallest(rows[0], []).size
    downloads = Downloads(blobs, at_hand_bytes=2 * one + 10_000)
    for release in rows:
        for base in rows:
            downloads.smallest(release, [base.manifest.sha256])
        assert downloads.bytes_at_hand <= 2 * one + 10_000


def test_an_adapter_that_is_gone_is_an_error_that_names_it(blobs: BlobStore) -> None:
    release = row(blobs, FIRST)
    blobs.discard(release.manifest.sha256)
    with pytest.raises(StateError, match=release.manifest.sha256[:10]):
        Downloads(blobs).smallest(release, [])


async def test_missing_chunks_of_another_form_bring_all_of_the_adapter(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8)
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        release = (await ada.phase("open")).release
        want = ada.fetcher.want(release)
        await ada.sender.say("want", want.model_copy(update={"missing": [(0, 1)], "transfer": bytes(16)}))
        await ada.until(lambda: ada.blobs.has(release.sha256))


async def test_a_device_with_the_release_before_gets_the_difference_to_it(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8)
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        for number in (1, 2):  # the first merge draws the rows of A anew that nobody trained, the second one keeps them
            opened = await ada.phase("open", number)
            start = await ada.fetch(opened)
            one = min(start.modules)
            modules = {one: LoraFactors(a=start.modules[one].a * 0, b=start.modules[one].b * 0 + np.float32(0.001))}
            ada.send_update(opened, start, Delta(rank=start.rank, modules=modules))
            trial = await ada.phase("trial", number)
            if number == 1:
                ada.judge(trial)
        assert trial.candidate is not None
        want = ada.fetcher.want(trial.candidate, have=["f" * 64, opened.release.sha256])
        assert want.have == [opened.release.sha256]
        await ada.sender.say("want", want)
        await ada.until(lambda: ada.blobs.has(trial.candidate.sha256))
    to_ada = [len(payload) for _, topic, payload in world.seen if topic.endswith(f"to/{ada.identity.id}/chunk")]
    first, second, difference = to_ada
    assert difference < 0.2 * min(first, second)
