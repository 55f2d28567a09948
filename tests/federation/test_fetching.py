from __future__ import annotations

import asyncio
import hashlib
import secrets
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.crypto.identity import Identity
from agent.crypto.sealing import seal, seal_stream
from agent.errors import MalformedMessageError, OversizedMessageError, ProtocolError, SealBrokenError, TransferError
from agent.federation.fetching import MAX_ADAPTER_BYTES, Fetcher
from agent.federation.messages import Chunk, Manifest, Offer
from agent.federation.sealing import PLAIN_CHUNK_BYTES, adapter_info, adapter_transfer_id, make_offer
from agent.llm.adapter import LoraFactors, ModulePath
from agent.paths import BlobStore
from agent.testing import random_adapter
from agent.update.release import pack_difference, pack_whole

COMMUNITY = bytes(range(16))
HUB = "h" * 52
SHAPES = {
    ModulePath("model.layers.0.mlp.up_proj"): (1024, 512),
    ModulePath("model.layers.0.mlp.down_proj"): (512, 1024),
}


@dataclass
class Delivery:
    """An adapter as the hub sends it to one device."""

    data: bytes
    manifest: Manifest
    offer: Offer
    chunks: list[Chunk]


def deliver(
    identity: Identity, data: bytes, *, content: bytes | None = None, sealed_for: Identity | None = None
) -> Delivery:
    """Send ``data``, as a whole or in whatever form ``content`` is."""
    sha256 = hashlib.sha256(data).hexdigest()
    form = pack_whole(data) if content is None else content
    key = secrets.token_bytes(32)
    sealed = seal_stream(form, key, PLAIN_CHUNK_BYTES)
    transfer = adapter_transfer_id(sha256, identity.id, hashlib.sha256(form).digest())
    info = adapter_info(COMMUNITY, HUB, identity.id, transfer, sha256)
    offer = make_offer(
        sealed,
        transfer=transfer,
        purpose="adapter",
        round_number=0,
        adapter=sha256,
        sealed_key=seal((sealed_for or identity).public.seal_key, key, info),
    )
    chunks = [Chunk(transfer=transfer, index=index, data=chunk) for index, chunk in enumerate(sealed)]
    manifest = Manifest(number=1, sha256=sha256, parent="", size=len(data), round=1)
    return Delivery(data, manifest, offer, chunks)


def receive(fetcher: Fetcher, made: Delivery) -> None:
    fetcher.offered(made.offer)
    for chunk in made.chunks:
        fetcher.arrived(chunk)


ADAPTER = random_adapter(shapes=SHAPES, rank=32, seed=1)
FROZEN = {name: LoraFactors(a=f.a, b=f.b + np.float32(0.01)) for name, f in ADAPTER.modules.items()}
NEXT = replace(ADAPTER, modules=FROZEN)


@dataclass
class Desk:
    identity: Identity
    blobs: BlobStore
    directory: Path

    def fetcher(self) -> Fetcher:
        return Fetcher(blobs=self.blobs, identity=self.identity, community=COMMUNITY, hub=HUB, directory=self.directory)

    def delivery(self, **options: Any) -> Delivery:
        return deliver(self.identity, ADAPTER.to_bytes(), **options)

    def difference(self, data: bytes) -> Delivery:
        content = pack_difference(data, ADAPTER.to_bytes())
        assert content is not None
        return deliver(self.identity, data, content=content)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    for name in ("blobs", "inbox"):
        (tmp_path / name).mkdir()
    return Desk(Identity.generate(), BlobStore(tmp_path / "blobs"), tmp_path / "inbox")


def test_adapter_is_kept_once_it_is_whole_in_any_order_of_its_chunks(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    assert len(made.chunks) > 2
    assert fetcher.want(made.manifest).missing == []
    fetcher.offered(made.offer)
    for chunk in reversed(made.chunks):
        assert not desk.blobs.has(made.manifest.sha256)
        fetcher.arrived(chunk)
    assert desk.blobs.get(made.manifest.sha256) == made.data
    assert list(desk.directory.iterdir()) == []


async def test_each_wait_in_which_nothing_comes_is_longer_until_something_does_or_the_hub_is_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher, made, waits = desk.fetcher(), desk.delivery(), []
    timeout = asyncio.timeout

    def at_once(seconds: float) -> asyncio.Timeout:
        waits.append(seconds)
        return timeout(0)

    async def waited(count: int) -> list[float]:
        waits.clear()
        for _ in range(count):
            await fetcher.wait(made.manifest.sha256, patience=15)
        return waits

    monkeypatch.setattr("agent.federation.fetching.asyncio.timeout", at_once)
    fetcher.want(made.manifest)
    assert await waited(7) == [15, 30, 60, 120, 240, 300, 300]
    fetcher.offered(made.offer)
    assert await waited(2) == [15, 30]
    fetcher.begin_anew()
    assert await waited(2) == [15, 30]


async def test_wait_that_has_grown_ends_when_the_hub_is_back(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    await fetcher.wait(made.manifest.sha256, patience=0.01)
    waiting = asyncio.create_task(fetcher.wait(made.manifest.sha256, patience=300))
    await asyncio.sleep(0)
    fetcher.begin_anew()
    async with asyncio.timeout(10):
        await waiting


def test_after_a_restart_only_what_is_missing_is_asked_for(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    fetcher.arrived(made.chunks[1])
    again = desk.fetcher()
    want = again.want(made.manifest)
    assert want.missing == [(0, 1), (2, len(made.chunks) - 2)]
    assert want.transfer == made.offer.transfer
    for chunk in made.chunks:
        if chunk.index != 1:
            again.arrived(chunk)
    assert desk.blobs.get(made.manifest.sha256) == made.data


def test_adapter_that_nobody_asked_for_is_refused(desk: Desk) -> None:
    made = desk.delivery()
    with pytest.raises(MalformedMessageError):
        desk.fetcher().offered(made.offer)
    with pytest.raises(TransferError):
        desk.fetcher().arrived(made.chunks[0])
    fetcher = desk.fetcher()
    fetcher.want(made.manifest)
    with pytest.raises(MalformedMessageError):
        fetcher.offered(made.offer.model_copy(update={"purpose": "update"}))
    assert list(desk.directory.iterdir()) == []


def test_adapter_sealed_for_another_device_is_refused_before_its_chunks_come(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery(sealed_for=Identity.generate())
    fetcher.want(made.manifest)
    with pytest.raises(SealBrokenError):
        fetcher.offered(made.offer)
    with pytest.raises(TransferError):
        fetcher.arrived(made.chunks[0])
    assert not desk.blobs.has(made.manifest.sha256)
    assert list(desk.directory.iterdir()) == []


def test_chunk_that_was_changed_costs_a_second_try_of_that_chunk_alone(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    changed = made.chunks[0].model_copy(update={"data": bytes(len(made.chunks[0].data))})
    with pytest.raises(ProtocolError):
        fetcher.arrived(changed)
    for chunk in made.chunks[1:]:
        fetcher.arrived(chunk)
    assert fetcher.want(made.manifest).missing == [(0, 1)]
    fetcher.arrived(made.chunks[0])
    assert desk.blobs.get(made.manifest.sha256) == made.data


def test_chunk_that_changed_on_the_disk_is_asked_for_alone(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    for chunk in made.chunks[:-1]:
        fetcher.arrived(chunk)
    (desk.directory / made.offer.transfer.hex() / "1").write_bytes(bytes(len(made.chunks[1].data)))
    with pytest.raises(ProtocolError):
        fetcher.arrived(made.chunks[-1])
    assert fetcher.want(made.manifest).missing == [(1, 1)]
    fetcher.arrived(made.chunks[1])
    assert desk.blobs.get(made.manifest.sha256) == made.data


def test_a_device_that_has_the_release_before_takes_the_difference(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.difference(NEXT.to_bytes())
    base = desk.blobs.put(ADAPTER.to_bytes())
    assert fetcher.want(made.manifest, have=[base, "f" * 64]).have == [base]
    receive(fetcher, made)
    assert desk.blobs.get(made.manifest.sha256) == NEXT.to_bytes()
    assert sum(len(chunk.data) for chunk in made.chunks) < 0.6 * len(NEXT.to_bytes())
    assert list(desk.directory.iterdir()) == []


@pytest.mark.parametrize(
    "fault", ["base is gone", "base is damaged", "another result", "no form", "a bomb", "no adapter"]
)
def test_a_wrong_difference_costs_a_download_of_the_whole_and_nothing_else(desk: Desk, fault: str) -> None:
    fetcher, data = desk.fetcher(), NEXT.to_bytes()
    base = desk.blobs.put(ADAPTER.to_bytes())
    made = desk.difference(data)
    match fault:
        case "base is gone":
            desk.blobs.discard(base)
        case "base is damaged":
            desk.blobs.path(base).write_bytes(b"nonsense")
        case "another result":
            wrong = pack_difference(random_adapter(shapes=SHAPES, rank=32, seed=7).to_bytes(), ADAPTER.to_bytes())
            made = deliver(desk.identity, data, content=wrong)
        case "no form":
            made = deliver(desk.identity, data, content=b"\7" + bytes(300_000))
        case "a bomb":
            made = deliver(desk.identity, data, content=pack_whole(bytes(100 * 1024 * 1024)))
        case "no adapter":
            data = bytes(100_000)
            made = deliver(desk.identity, data)
    fetcher.want(made.manifest, have=[base])
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        receive(fetcher, made)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert not desk.blobs.has(made.manifest.sha256)
    assert list(desk.directory.iterdir()) == []
    want = fetcher.want(made.manifest, have=[base])
    assert (want.have, want.missing, want.transfer) == ([], [], b"")
    if fault != "no adapter":
        receive(fetcher, deliver(desk.identity, data))
        assert desk.blobs.get(made.manifest.sha256) == data


def test_another_form_takes_the_place_of_the_one_under_way(desk: Desk) -> None:
    fetcher, data = desk.fetcher(), NEXT.to_bytes()
    desk.blobs.put(ADAPTER.to_bytes())
    first, second = deliver(desk.identity, data), desk.difference(data)
    fetcher.want(first.manifest)
    fetcher.offered(first.offer)
    fetcher.arrived(first.chunks[0])
    fetcher.offered(second.offer)
    assert fetcher.want(first.manifest).transfer == second.offer.transfer
    with pytest.raises(TransferError):
        fetcher.arrived(first.chunks[1])
    for chunk in second.chunks:
        fetcher.arrived(chunk)
    assert desk.blobs.get(first.manifest.sha256) == data
    assert list(desk.directory.iterdir()) == []


def test_an_adapter_larger_than_any_is_not_asked_for(desk: Desk) -> None:
    manifest = Manifest(number=1, sha256="a" * 64, parent="", size=MAX_ADAPTER_BYTES + 1, round=1)
    with pytest.raises(OversizedMessageError):
        desk.fetcher().want(manifest)


async def test_waiting_ends_when_the_adapter_is_here_or_nothing_comes(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    await fetcher.wait(made.manifest.sha256, patience=0.01)
    assert not desk.blobs.has(made.manifest.sha256)
    waiting = asyncio.create_task(fetcher.wait(made.manifest.sha256, patience=30))
    await asyncio.sleep(0)
    fetcher.offered(made.offer)
    for chunk in made.chunks:
        fetcher.arrived(chunk)
    async with asyncio.timeout(5):
        await waiting
    assert desk.blobs.has(made.manifest.sha256)


@pytest.mark.parametrize("fate", ["abandoned", "killed"])
def test_what_came_of_an_adapter_that_is_not_wanted_any_more_is_thrown_away(desk: Desk, fate: str) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    other = deliver(desk.identity, NEXT.to_bytes())
    for delivery in (made, other):
        fetcher.want(delivery.manifest)
        fetcher.offered(delivery.offer)
        fetcher.arrived(delivery.chunks[0])
    if fate == "killed":  # before the offer was written beside its chunks
        (desk.directory / f"{other.offer.transfer.hex()}.offer").unlink()
    again = desk.fetcher()  # it need not remember what it wanted
    again.keep_only({made.manifest.sha256})
    left = made.offer.transfer.hex()
    assert {path.name for path in desk.directory.iterdir()} == {left, f"{left}.offer"}
    assert again.want(made.manifest).missing == [(1, len(made.chunks) - 1)]
    with pytest.raises(ProtocolError):
        again.arrived(other.chunks[1])
