from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.update.streams import BodyError, compress, expand, join, split


def test_what_was_compressed_expands_to_itself() -> None:
    assert expand(compress(b"bramble" * 100), 700) == b"bramble" * 100


@settings(deadline=None)
@given(streams=st.lists(st.binary(max_size=300), max_size=5))
def test_streams_that_were_joined_are_split_again(streams: list[bytes]) -> None:
    assert split(join(streams), [len(stream) for stream in streams]) == streams


def test_a_bomb_is_refused_before_it_is_expanded() -> None:
    bomb = compress(bytes(200 * 1024 * 1024))
    assert len(bomb) < 100_000
    body = join([b"small"]) + len(bomb).to_bytes(4, "big") + bomb
    tracemalloc.start()
    with pytest.raises(BodyError, match="states 209,715,200 bytes") as caught:
        expand(bomb, 1000)
    with pytest.raises(BodyError, match="states 209,715,200 bytes"):
        split(body, [5, 1000])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert caught.value.reason == "size"


def test_a_frame_that_hides_its_size_is_refused() -> None:
    coder = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(BodyError, match="unknown size"):
        expand(coder.compress(bytes(1000)), 1000)


def test_bytes_after_the_frame_or_the_last_stream_are_refused() -> None:
    with pytest.raises(BodyError):
        expand(compress(bytes(1000)) + b"x", 1000)
    with pytest.raises(BodyError, match="goes on"):
        split(join([b"one"]) + b"x", [3])


def test_a_body_with_too_few_streams_is_refused() -> None:
    with pytest.raises(BodyError, match="ends early"):
        split(join([b"one"]), [3, 3])


@pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", compress(bytes(1000))[:-3], b"nonsense" * 9])
def test_damaged_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(BodyError):
        expand(frame, 1000)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), sizes=st.lists(st.integers(0, 100), max_size=3))
def test_any_bytes_give_streams_of_the_sizes_asked_for_or_a_refusal(body: bytes, sizes: list[int]) -> None:
    try:
        streams = split(body, sizes)
    except BodyError as refusal:
        reason = refusal.reason
    else:
        reason = None
        assert [len(stream) for stream in streams] == sizes
    assert reason in {None, "size", "malformed"}
