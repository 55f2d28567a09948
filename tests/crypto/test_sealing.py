from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.crypto.identity import Identity
from agent.crypto.sealing import (
    MAX_SEAL_BYTES,
    PUBLIC_BYTES,
    SEAL_OVERHEAD,
    TAG_BYTES,
    ChunkOpener,
    ChunkSealer,
    SealKey,
    is_intact,
    new_stream_key,
    open_stream,
    seal,
    seal_stream,
    unseal,
)
from agent.errors import OversizedMessageError, SealBrokenError

KEY = SealKey.generate()
STREAM = bytes(range(32))


@given(plaintext=st.binary(max_size=200), info=st.binary(max_size=80))
@settings(max_examples=30)
def test_what_is_sealed_opens_for_its_receiver(plaintext: bytes, info: bytes) -> None:
    sealed = seal(KEY.public, plaintext, info)
    assert len(sealed) == len(plaintext) + SEAL_OVERHEAD
    assert unseal(KEY, sealed, info) == plaintext


def test_an_identity_opens_what_was_sealed_to_its_public_half() -> None:
    identity = Identity.generate()
    assert unseal(identity, seal(identity.public.seal_key, b"x", b"i"), b"i") == b"x"


def test_another_key_or_another_purpose_does_not_open_it() -> None:
    sealed = seal(KEY.public, b"secret", b"round 1")
    with pytest.raises(SealBrokenError):
        unseal(KEY, sealed, b"round 2")
    with pytest.raises(SealBrokenError):
        unseal(SealKey.generate(), sealed, b"round 1")


def test_any_changed_byte_of_a_sealed_value_is_seen() -> None:
    sealed = seal(KEY.public, b"secret", b"i")
    positions = {*range(0, len(sealed), 29), *range(len(sealed) - 24, len(sealed)), *range(1085, 1125)}
    for position in positions:
        changed = bytearray(sealed)
        changed[position] ^= 0x01
        with pytest.raises(SealBrokenError):
            unseal(KEY, bytes(changed), b"i")
    for cut in (b"", sealed[:-1], sealed[: SEAL_OVERHEAD - 1], sealed + b"\0"):
        with pytest.raises(SealBrokenError):
            unseal(KEY, cut, b"i")


@pytest.mark.parametrize("public", [b"", bytes(PUBLIC_BYTES), b"\xff" * PUBLIC_BYTES, KEY.public[:-1]])
def test_a_public_key_that_is_none_is_refused(public: bytes) -> None:
    with pytest.raises(SealBrokenError):
        seal(public, b"x", b"")


def test_large_things_belong_into_a_stream() -> None:
    with pytest.raises(OversizedMessageError):
        seal(KEY.public, bytes(MAX_SEAL_BYTES + 1), b"")
    with pytest.raises(OversizedMessageError):
        unseal(KEY, bytes(MAX_SEAL_BYTES + SEAL_OVERHEAD + 1), b"")


def test_a_key_is_rebuilt_from_its_seed() -> None:
    again = SealKey.from_seed(KEY.seed)
    assert again.public == KEY.public
    assert unseal(again, seal(KEY.public, b"x", b""), b"") == b"x"
    with pytest.raises(ValueError, match="96"):
        SealKey.from_seed(bytes(95))


@given(plaintext=st.binary(max_size=300), chunk=st.integers(1, 64))
def test_a_stream_opens_to_what_was_sealed(plaintext: bytes, chunk: int) -> None:
    chunks = seal_stream(plaintext, STREAM, chunk)
    assert len(chunks) == max(1, -(-len(plaintext) // chunk))
    assert open_stream(chunks, STREAM, 300) == plaintext


@given(plaintext=st.binary(min_size=1, max_size=100), data=st.data())
def test_a_stream_that_is_cut_swapped_repeated_or_changed_is_seen(plaintext: bytes, data: st.DataObject) -> None:
    chunks = seal_stream(plaintext, STREAM, 16)
    changed = data.draw(
        st.one_of(
            st.permutations(chunks),
            st.lists(st.sampled_from(chunks), max_size=len(chunks) + 1),
        )
    )
    if changed != chunks:
        with pytest.raises(SealBrokenError):
            open_stream(changed, STREAM, 1000)


def test_any_changed_byte_of_a_stream_is_seen() -> None:
    chunks = seal_stream(b"three chunks of plaintext, the last one short", STREAM, 20)
    for number, chunk in enumerate(chunks):
        for position in range(len(chunk)):
            changed = bytearray(chunk)
            changed[position] ^= 0x01
            with pytest.raises(SealBrokenError):
                open_stream([*chunks[:number], bytes(changed), *chunks[number + 1 :]], STREAM, 1000)


def test_a_stream_longer_than_allowed_is_refused_before_it_is_opened() -> None:
    chunks = seal_stream(bytes(100), STREAM, 20)
    assert open_stream(chunks, STREAM, 100) == bytes(100)
    taken: list[bytes] = []

    def offered() -> Iterator[bytes]:
        for chunk in chunks:
            taken.append(chunk)
            yield chunk

    with pytest.raises(OversizedMessageError):
        open_stream(offered(), STREAM, 59)
    assert len(taken) == 3


def test_a_stream_of_nothing_has_one_empty_chunk_and_only_then() -> None:
    (only,) = seal_stream(b"", STREAM, 10)
    assert len(only) == TAG_BYTES
    assert open_stream([only], STREAM, 0) == b""
    sealer = ChunkSealer(STREAM)
    trailing = [sealer.seal(b"data", final=False), sealer.seal(b"", final=True)]
    with pytest.raises(SealBrokenError, match="empty"):
        open_stream(trailing, STREAM, 100)
    with pytest.raises(SealBrokenError):
        open_stream([], STREAM, 100)
    with pytest.raises(ValueError, match="ended"):
        sealer.seal(b"more", final=True)


def test_a_stream_opens_chunk_by_chunk_and_tells_when_it_is_whole() -> None:
    first, last = seal_stream(b"0123456789", STREAM, 5)
    opener = ChunkOpener(STREAM)
    opened = bytearray(10)
    room = memoryview(opened)
    opener.open_into(first, room[:5], final=False)
    assert opened == b"01234" + bytes(5)
    finished = opener.finished
    assert not finished
    opener.open_into(last, room[5:], final=True)
    assert opened == b"0123456789"
    finished = opener.finished
    assert finished
    with pytest.raises(SealBrokenError):
        opener.open_into(last, room[5:], final=True)


def test_another_key_does_not_open_a_stream() -> None:
    chunks = seal_stream(b"x", STREAM, 5)
    with pytest.raises(SealBrokenError):
        open_stream(chunks, new_stream_key(), 10)
    with pytest.raises(SealBrokenError):
        open_stream(chunks, b"short", 10)
    with pytest.raises(ValueError, match="one byte"):
        seal_stream(b"x", STREAM, 0)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 40), st.data())
def test_a_chunk_is_intact_in_its_own_place_alone(plaintext: bytes, chunk_bytes: int, data: st.DataObject) -> None:
    key = bytes(32)
    chunks = seal_stream(plaintext, key, chunk_bytes)
    last = len(chunks) - 1
    place = data.draw(st.integers(0, last))
    assert all(is_intact(chunk, key, index, final=index == last) for index, chunk in enumerate(chunks))
    assert not is_intact(chunks[place], key, place + 1, final=place == last)
    assert not is_intact(chunks[place], key, place, final=place != last)
    assert not is_intact(chunks[place], bytes(31) + b"\1", place, final=place == last)
    assert not is_intact(chunks[place][:-1], key, place, final=place == last)
    assert not is_intact(b"", key, place, final=place == last)
