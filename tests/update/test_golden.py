"""The wire forms of updates and adapters, pinned: what was sent once can be read for ever.

zstd may make other frames of the same content in another version, so what is pinned of an encoder is the content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.testing import SMALL_SHAPES
from agent.update import streams
from agent.update.compression import compression_of
from agent.update.delta import Delta, Factors
from agent.update.layout import Layout, layout_of
from agent.update.release import pack_difference, pack_whole, unpack
from agent.update.wire import UpdateHeader, decode_update, encode

GOLDEN = Path(__file__).parent.parent / "golden" / "update.json"
HEADER = UpdateHeader(
    round=7, base_sha256="ab" * 32, start_release="cd" * 32, rank=2, alpha=4.0, tokens=1000, steps=40, seed=3
)
NAMES = ["none", "int8", "int4", "topk", "topk-b"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(GOLDEN.read_text())
    return kept


def delta(factors: Factors) -> Delta:
    """Give numbers that every machine computes alike, none as large as another, of very different sizes."""
    layout = Layout(rank=2, factors=factors, modules=dict(sorted(SMALL_SHAPES.items())))
    index = np.arange(layout.count, dtype=np.float64)
    return layout.restore(((((index * 37) % 101) - 50 + index / 1024) / 64).astype(np.float32))


def parts(data: bytes, sizes: list[int]) -> tuple[bytes, list[bytes]]:
    """Give an update's header and streams, expanded."""
    length = int.from_bytes(data[:4], "big")
    frame = data[4 : 4 + length]
    return streams.expand(frame, streams.stated_size(frame)), streams.split(data[4 + length :], sizes)


def made(name: str) -> tuple[bytes, Delta]:
    factors: Factors = "b" if name.endswith("-b") else "both"
    header = UpdateHeader(**{**{key: getattr(HEADER, key) for key in HEADER.__slots__}, "factors": factors})
    update = encode(header, delta(factors), name.removesuffix("-b"), density=0.25, rng=np.random.default_rng(1))
    return update.data, update.sent


@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_was_sent_once_reads_as_it_did(golden: dict[str, Any], name: str) -> None:
    kept = golden[name]
    header, back = decode_update(
        bytes.fromhex(kept["update"]), expected=SMALL_SHAPES, max_rank=2, max_bytes=len(kept["update"])
    )
    assert (header.round, header.tokens, header.factors) == (7, 1000, back.factors)
    numbers = layout_of(back).flatten(back)
    np.testing.assert_array_equal(numbers, np.frombuffer(bytes.fromhex(kept["numbers"]), "<f4"))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_encoded_as_it_was(golden: dict[str, Any], name: str) -> None:
    data, sent = made(name)
    sizes = compression_of(name.removesuffix("-b"), 0.25).sizes(layout_of(sent).count)
    assert parts(data, sizes) == parts(bytes.fromhex(golden[name]["update"]), sizes)


@pytest.mark.parametrize("form", ["whole", "difference"])
def test_the_forms_of_an_adapter_read_as_they_did(golden: dict[str, Any], form: str) -> None:
    kept = {key: bytes.fromhex(value) for key, value in golden["adapter"].items()}
    assert unpack(kept[form], len(kept["data"]), lambda _sha256: kept["base"]) == kept["data"]
    again = pack_whole(kept["data"]) if form == "whole" else pack_difference(kept["data"], kept["base"])
    assert again is not None
    words = -(-len(kept["data"]) // 4)
    start = 1 if form == "whole" else 33
    assert again[:start] == kept[form][:start]
    assert streams.split(again[start:], [words] * 4) == streams.split(kept[form][start:], [words] * 4)
