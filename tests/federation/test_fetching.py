from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.crypto.identity import Identity
from agent.crypto.sealing import seal, seal_stream
from agent.errors import MalformedMessageError, ProtocolError, SealBrokenError, TransferError
from agent.federation.fetching import Fetcher
from agent.federation.messages import Chunk, Manifest, Offer
from agent.federation.sealing import PLAIN_CHUNK_BYTES, adapter_info, adapter_transfer_id, make_offer
from agent.llm.adapter import Adapter, ModulePath
from agent.paths import BlobStore
from agent.testing import random_adapter

COMMUNITY = bytes(range(16))
SHAPES = {ModulePath("model.layers.0.mlp.up_proj"): (512, 256), ModulePath("model.layers.0.mlp.down_proj"): (256, 512)}


@dataclass
class Delivery:
    """An adapter as the hub sends it to one device."""

    data: bytes
    manifest: Manifest
    offer: Offer
    chunks: list[Chunk]


def deliver(identity: Identity, adapter: Adapter, blobs: BlobStore, *, sealed_for: Identity | None = None) -> Delivery:
    data = adapter.to_bytes()
    sha256 = blobs.put(data)
    blobs.discard(sha256)
    key = secrets.token_bytes(32)
    sealed = seal_stream(data, key, PLAIN_CHUNK_BYTES)
    transfer = adapter_transfer_id(sha256, identity.id)
    info = adapter_info(COMMUNITY, identity.id, sha256)
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


@dataclass
class Desk:
    identity: Identity
    blobs: BlobStore
    directory: Path

    def fetcher(self) -> Fetcher:
        return Fetcher(blobs=self.blobs, identity=self.identity, community=COMMUNITY, directory=self.directory)

    def delivery(self, **options: Identity) -> Delivery:
        return deliver(self.identity, random_adapter(shapes=SHAPES, rank=32, seed=1), self.blobs, **options)


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


def test_after_a_restart_only_what_is_missing_is_asked_for(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    fetcher.arrived(made.chunks[1])
    again = desk.fetcher()
    assert again.want(made.manifest).missing == [(0, 1), (2, len(made.chunks) - 2)]
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
    assert list(desk.directory.iterdir()) == []


def test_adapter_sealed_for_another_device_is_thrown_away_whole(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery(sealed_for=Identity.generate())
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    for chunk in made.chunks[:-1]:
        fetcher.arrived(chunk)
    with pytest.raises(SealBrokenError):
        fetcher.arrived(made.chunks[-1])
    assert not desk.blobs.has(made.manifest.sha256)
    assert list(desk.directory.iterdir()) == []


def test_chunk_that_was_changed_costs_a_second_try_and_nothing_else(desk: Desk) -> None:
    fetcher, made = desk.fetcher(), desk.delivery()
    fetcher.want(made.manifest)
    fetcher.offered(made.offer)
    changed = made.chunks[0].model_copy(update={"data": bytes(len(made.chunks[0].data))})
    for chunk in (changed, *made.chunks[1:-1]):
        fetcher.arrived(chunk)
    with pytest.raises(ProtocolError):
        fetcher.arrived(made.chunks[-1])
    assert fetcher.want(made.manifest).missing == []
    fetcher.offered(made.offer)
    for chunk in made.chunks:
        fetcher.arrived(chunk)
    assert desk.blobs.get(made.manifest.sha256) == made.data


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
