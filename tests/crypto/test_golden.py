"""The wire forms, pinned: another implementation must give and take exactly these bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.crypto.envelope import parse, sign, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.sealing import SealKey, open_stream, seal_stream, unseal


@pytest.fixture
def golden() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "golden" / "crypto.json"
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.fixture
def identity(golden: dict[str, Any]) -> Identity:
    kept = golden["identity"]
    return Identity(
        signing_seed=bytes.fromhex(kept["signing_seed"]), seal_key=SealKey.from_seed(bytes.fromhex(kept["seal_seed"]))
    )


def test_an_identity_follows_from_its_seeds(golden: dict[str, Any], identity: Identity) -> None:
    kept = golden["identity"]
    assert identity.id == kept["id"]
    assert identity.public.encode().hex() == kept["public"]
    assert PublicIdentity.decode(bytes.fromhex(kept["public"])).fingerprint() == kept["fingerprint"]
    as_hub = replace(identity.public, role="hub")
    assert as_hub.fingerprint() == kept["fingerprint_as_hub"]


def test_an_envelope_has_these_bytes(golden: dict[str, Any], identity: Identity) -> None:
    kept = golden["envelope"]
    wire = sign(
        identity,
        kind=kept["kind"],
        community=bytes.fromhex(kept["community"]),
        counter=kept["counter"],
        time=kept["time"],
        body=bytes.fromhex(kept["body"]),
    )
    assert wire.hex() == kept["wire"]
    unverified = parse(bytes.fromhex(kept["wire"]))
    assert unverified.digest.hex() == kept["digest"]
    assert verify(unverified, identity.public).body.hex() == kept["body"]


def test_a_stream_has_these_bytes(golden: dict[str, Any]) -> None:
    kept = golden["stream"]
    key, plaintext = bytes.fromhex(kept["key"]), bytes.fromhex(kept["plaintext"])
    assert [chunk.hex() for chunk in seal_stream(plaintext, key, kept["chunk_bytes"])] == kept["chunks"]
    assert open_stream([bytes.fromhex(chunk) for chunk in kept["chunks"]], key, 1000) == plaintext


def test_a_sealed_value_from_before_still_opens(golden: dict[str, Any], identity: Identity) -> None:
    kept = golden["sealed"]
    assert unseal(identity, bytes.fromhex(kept["wire"]), bytes.fromhex(kept["info"])).hex() == kept["plaintext"]
