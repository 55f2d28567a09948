from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.llm.adapter import FloatArray
from agent.update.compression import NAMES, Compression, TopK, compression_of
from agent.update.quantise import BLOCK
from agent.update.streams import BodyError, join

CASES = [("int8", 1.0), ("int4", 1.0), ("none", 1.0), ("topk", 0.1), ("topk", 1.0), ("topk", 0.001)]
SIZES = [1, 7, BLOCK, 3 * BLOCK + 5]


def numbers(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 0.01, count).astype(np.float32)


def packed(coder: Compression, flat: FloatArray, seed: int = 0) -> list[bytes]:
    return coder.pack(flat, np.random.default_rng(seed))


def test_every_name_gives_a_compression_and_others_none() -> None:
    assert {name for name, _ in CASES} == set(NAMES)
    with pytest.raises(KeyError):
        compression_of("gzip")
    with pytest.raises(ValueError, match="density"):
        compression_of("topk", 0.0)


@pytest.mark.parametrize(("name", "density"), CASES)
@pytest.mark.parametrize("count", SIZES)
def test_the_sizes_of_all_streams_are_known_from_the_count(name: str, density: float, count: int) -> None:
    coder = compression_of(name, density)
    streams = packed(coder, numbers(count))
    assert [len(stream) for stream in streams] == coder.sizes(count)
    back = coder.unpack(streams, count)
    assert (back.shape, back.dtype) == ((count,), np.float32)


@pytest.mark.parametrize(("name", "density"), CASES)
@settings(max_examples=25, deadline=None)
@given(
    flat=arrays(np.float32, st.sampled_from(SIZES), elements=st.floats(-1e6, 1e6, width=32)),
    weight=st.floats(0.001, 10),
    seed=st.integers(0, 99),
)
def test_writing_over_a_row_gives_what_unpacking_gives_times_the_weight(
    name: str, density: float, flat: FloatArray, weight: float, seed: int
) -> None:
    coder = compression_of(name, density)
    streams = packed(coder, flat, seed)
    into = numbers(flat.size, seed)
    wanted = weight * coder.unpack(streams, flat.size).astype(np.float64)
    coder.write(streams, into, weight)
    np.testing.assert_allclose(into, wanted, rtol=1e-5, atol=1e-6 * (1 + np.abs(flat).max() * weight))


@pytest.mark.parametrize(("name", "density"), CASES)
def test_the_same_numbers_and_generator_give_the_same_bytes(name: str, density: float) -> None:
    coder = compression_of(name, density)
    assert packed(coder, numbers(2000)) == packed(coder, numbers(2000))


@pytest.mark.parametrize(("name", "error", "bits"), [("int8", 2e-4, 8.1), ("int4", 0.06, 3.05), ("none", 0.0, 32.1)])
def test_error_and_size_are_what_the_module_says(name: str, error: float, bits: float) -> None:
    flat = numbers(200_000, seed=5)
    coder = compression_of(name)
    streams = packed(coder, flat)
    off = coder.unpack(streams, flat.size) - flat
    assert float((off**2).sum() / (flat**2).sum()) <= error
    assert 8 * len(join(streams)) / flat.size < bits


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
def test_topk_sends_the_largest_numbers_and_nothing_else(density: float) -> None:
    flat = numbers(20_000, seed=2)
    coder = TopK(density)
    kept = coder.kept(flat.size)
    assert kept == round(density * flat.size)
    back = coder.unpack(packed(coder, flat), flat.size)
    largest = np.sort(np.argsort(np.abs(flat))[flat.size - kept :])
    sent = np.flatnonzero(back)
    assert set(sent) <= set(largest)
    np.testing.assert_allclose(back[largest], flat[largest], atol=float(np.abs(flat).max()) / 7 / 2 * 1.05)
    left = float(((flat - back) ** 2).sum() / (flat**2).sum())
    assert left <= 1 - density  # Stich et al. 2018, definition 2.1: a contraction, and a better one than chance


def test_topk_takes_few_bits_because_gaps_are_small_numbers() -> None:
    flat = numbers(200_000, seed=6)
    assert 8 * len(join(packed(TopK(0.1), flat))) / flat.size < 0.8


def test_gaps_of_any_length_are_kept() -> None:
    flat = np.zeros(3_000_000, np.float32)
    places = [0, 1, 300, 70_000, 2_999_999]
    flat[places] = [1, -1, 1, -1, 1]
    coder = TopK(5 / flat.size)
    assert np.flatnonzero(coder.unpack(packed(coder, flat), flat.size)).tolist() == places


@pytest.mark.parametrize(
    ("step", "reason"),
    [(np.nan, "not-finite"), (np.inf, "not-finite"), (-1.0, "malformed"), (3e38, "malformed"), (1e-38, "malformed")],
)
@pytest.mark.parametrize(("name", "density"), [case for case in CASES if case[0] != "none"])
def test_a_step_that_cannot_be_is_refused_and_the_row_is_untouched(
    name: str, density: float, step: float, reason: str
) -> None:
    coder = compression_of(name, density)
    streams = packed(coder, numbers(600))
    streams[-2] = np.float32(step).tobytes() + streams[-2][4:]
    into = np.ones(600, np.float32)
    with pytest.raises(BodyError) as caught:
        coder.write(streams, into, 1.0)
    assert caught.value.reason == reason
    with pytest.raises(BodyError):
        coder.unpack(streams, 600)
    assert (into == 1).all()


@pytest.mark.parametrize(
    ("number", "reason"), [(np.inf, "not-finite"), (np.nan, "not-finite"), (-np.inf, "not-finite"), (2e30, "malformed")]
)
def test_a_plain_number_that_cannot_be_is_refused_and_the_row_is_untouched(number: float, reason: str) -> None:
    flat = np.ones(100_000, "<f4")
    flat[-1] = number
    into = np.zeros(flat.size, np.float32)
    coder = compression_of("none")
    with pytest.raises(BodyError) as caught:
        coder.write([flat.tobytes()], into, 1.0)
    assert caught.value.reason == reason
    assert not into.any()
    with pytest.raises(ValueError, match="too large"):
        packed(coder, np.full(3, 2e30, np.float32))


def test_a_place_beyond_the_end_is_refused() -> None:
    coder = TopK(0.1)
    streams = packed(coder, numbers(1000))
    streams[0] = b"\xff" * len(streams[0])
    into = np.zeros(1000, np.float32)
    with pytest.raises(BodyError, match="beyond the end"):
        coder.write(streams, into, 1.0)
    assert not into.any()


@pytest.mark.parametrize(("name", "density"), CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_streams_give_finite_numbers_in_bounds_or_a_refusal(name: str, density: float, data: st.DataObject) -> None:
    coder, count = compression_of(name, density), 700
    streams = [bytearray(stream) for stream in packed(coder, numbers(count))]
    for stream in streams:
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6)):
            stream[place % len(stream)] = value
    into = np.zeros(count, np.float32)
    parts = [bytes(stream) for stream in streams]
    try:
        flat = coder.unpack(parts, count)
    except BodyError as refusal:
        reason = refusal.reason
        with pytest.raises(BodyError):
            coder.write(parts, into, 1.0)
    else:
        reason = None
        assert flat.shape == (count,)
        assert np.isfinite(flat).all()
        coder.write(parts, into, 0.5)
        np.testing.assert_allclose(into, 0.5 * flat, rtol=1e-6)
    assert reason in {None, "not-finite", "malformed"}
