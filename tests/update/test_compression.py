from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard

from agent.update.compression import COMPRESSIONS, BodyError, compress, expand


def test_what_was_compressed_expands_to_itself() -> None:
    assert expand(compress(b"bramble" * 100), 700) == b"bramble" * 100


def test_a_bomb_is_refused_before_it_is_expanded() -> None:
    bomb = compress(bytes(200 * 1024 * 1024))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(BodyError, match="states 209,715,200 bytes") as caught:
        expand(bomb, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert caught.value.reason == "size"


def test_a_frame_that_hides_its_size_is_refused() -> None:
    coder = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(BodyError, match="unknown size"):
        expand(coder.compress(bytes(1000)), 1000)


def test_bytes_after_the_frame_are_refused() -> None:
    with pytest.raises(BodyError):
        expand(compress(bytes(1000)) + b"x", 1000)


@pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", compress(bytes(1000))[:-3], b"nonsense" * 9])
def test_damaged_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(BodyError):
        expand(frame, 1000)


@pytest.mark.parametrize("name", sorted(COMPRESSIONS))
def test_the_plain_size_is_known_from_the_shapes(name: str) -> None:
    shapes = [(3, 50), (50, 3), (1, 1)]
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    body = COMPRESSIONS[name].pack(tensors, rng)
    assert len(body) == COMPRESSIONS[name].plain_size(shapes)
    assert [tensor.shape for tensor in COMPRESSIONS[name].unpack(body, shapes)] == shapes


@pytest.mark.parametrize(
    ("place", "patch", "reason"),
    [
        (0, np.float32(np.nan).tobytes(), "not-finite"),
        (0, np.float32(-1).tobytes(), "malformed"),
        (0, np.float32(3e38).tobytes(), "malformed"),
        (4, np.float16(np.inf).tobytes(), "not-finite"),
        (4, np.float16(1.5).tobytes(), "malformed"),
        (6, b"\x80", "malformed"),
    ],
)
def test_scales_and_codes_that_cannot_be_are_refused(place: int, patch: bytes, reason: str) -> None:
    tensor = np.ones((8, 8), np.float32)
    body = bytearray(COMPRESSIONS["int8"].pack([tensor], np.random.default_rng(0)))
    body[place : place + len(patch)] = patch
    with pytest.raises(BodyError) as caught:
        COMPRESSIONS["int8"].unpack(bytes(body), [(8, 8)])
    assert caught.value.reason == reason


def test_a_plain_number_that_is_not_finite_is_refused() -> None:
    body = np.array([1, np.inf], "<f4").tobytes()
    with pytest.raises(BodyError, match="not finite"):
        COMPRESSIONS["none"].unpack(body, [(1, 2)])
