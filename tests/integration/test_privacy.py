"""What passes the broker in a full round, every byte of it, holds nothing that belongs to the owner alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from agent.federation.store import open_device_store
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from tests.integration.community import Community, grown_release, make_community
from tests.integration.local_broker import local_broker
from tests.integration.proxy import Passed, Wiretap

pytestmark = pytest.mark.slow

PIECE = 24
KINDS = {"card", "charter", "round", "want", "offer", "chunk", "receipt", "verdict"}


@dataclass(frozen=True)
class Recording:
    """One round as the wire saw it."""

    community: Community
    updates: list[bytes]
    passed: list[Passed]
    streams: list[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.streams))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    directory = tmp_path_factory.mktemp("privacy")
    with local_broker() as port, Wiretap(upstream=port) as wire:
        community = make_community(directory / "community", broker=wire.url)
        with community.hub() as hub:
            hub.wait_for("hub-ready")
            community.join_all()
            with community.device("ada") as ada, community.device("bob") as bob:
                first = hub.wait_for("update-accepted")
                second = hub.wait_for("update-accepted", after=first)
                blobs = BlobStore(community.hub_home.blobs)  # which forgets updates when the round is over
                updates = [blobs.get(said["update"]) for said in (first, second)]
                grown_release(hub, 1)
                for device in (ada, bob):
                    device.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
        return Recording(community, updates, wire.messages(), [bytes(stream) for stream in wire.streams])


def pieces(secret: bytes, step: int = 1) -> Iterator[bytes]:
    """Give every run of 24 bytes, or one in ``step``."""
    return (secret[start : start + PIECE] for start in range(0, len(secret) - PIECE + 1, step))


def found(secrets: Iterable[bytes], streams: Iterable[bytes]) -> set[bytes]:
    """Give the pieces that occur anywhere in what was recorded."""
    wanted = set(secrets)
    seen: set[bytes] = set()
    for stream in streams:
        seen.update(piece for piece in pieces(stream) if piece in wanted)
    return seen


def factors(data: bytes) -> bytes:
    """Give the numbers of an adapter as they lie in its file, without those that are zero at the start."""
    parts = itertools.chain.from_iterable((module.a, module.b) for module in from_bytes(data).modules.values())
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts if np.any(part))


def test_the_recording_holds_every_kind_of_message_and_whole_updates(recording: Recording) -> None:
    topics = {message.topic.split("/")[2] for message in recording.passed}
    kinds = {message.topic.rsplit("/", 1)[-1] for message in recording.passed}
    sent = sum(row["wire_bytes"] for row in recording.community.status()["updates"])
    said = [len(passed.payload) for passed in recording.passed if "/from/" in passed.topic and "chunk" in passed.topic]
    assert {"hub", "to", "from", "join", "joined"} <= topics
    assert kinds >= KINDS
    assert sum(said) >= 2 * sent > 0  # to the broker, and from there to the hub
    # The search would find what is there in plain sight:
    name = recording.community.config.charter.base_name.encode()
    sha256 = recording.community.config.charter.base_sha256.encode()
    assert any(name in stream for stream in recording.streams)
    assert found(pieces(sha256), recording.streams) == set(pieces(sha256))


def test_no_piece_of_the_owners_text_passes_the_broker(recording: Recording) -> None:
    community = recording.community
    texts = [file.read_bytes() for name in community.devices for file in sorted(community.text(name).iterdir())]
    assert sum(map(len, texts)) > 60_000
    assert found(itertools.chain.from_iterable(map(pieces, texts)), recording.streams) == set()


def test_no_piece_of_a_plain_update_passes_the_broker(recording: Recording) -> None:
    community = recording.community
    public = {row["sha256"].encode() for row in community.status()["releases"]}
    public |= {community.config.charter.base_sha256.encode()}
    parts = [part for update in recording.updates for part in re.split(b"|".join(public), update)]
    secrets = set(itertools.chain.from_iterable(map(pieces, parts)))
    assert len(secrets) > 50_000
    assert found(secrets, recording.streams) == set()


def test_no_piece_of_an_adapter_passes_the_broker_in_plain(recording: Recording) -> None:
    community = recording.community
    secrets: set[bytes] = set()
    for row in community.status()["releases"]:
        secrets.update(pieces(factors(BlobStore(community.hub_home.blobs).get(row["sha256"])), step=4))
    for name in community.devices:
        home = community.home(name)
        with open_device_store(home) as store:
            trained = str(store.rounds()[-1].report["trained"])
        secrets.update(pieces(factors(BlobStore(home.blobs).get(trained)), step=4))
        personal = home.work / "adapters" / "personal.gguf"
        if personal.is_file():
            secrets.update(pieces(personal.read_bytes()[-64 * 1024 :], step=4))
    secrets.discard(bytes(PIECE))
    assert len(secrets) > 100_000
    assert found(secrets, recording.streams) == set()


def test_no_file_name_path_or_nickname_passes_the_broker(recording: Recording) -> None:
    community = recording.community
    names = [file.name for name in community.devices for file in community.text(name).iterdir()]
    names += ["letters-about", "private-letters", "nickname-of", str(community.directory), "safetensors", "lora_A"]
    for name in names:
        assert not any(name.encode() in stream for stream in recording.streams), name
