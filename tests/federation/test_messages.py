from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto import canonical
from agent.errors import MalformedMessageError, OversizedMessageError
from agent.federation.messages import (
    KINDS,
    MAX_BODY_ITEMS,
    Announcement,
    Body,
    Card,
    CharterNotice,
    Chunk,
    JoinReply,
    JoinRequest,
    Leave,
    Manifest,
    Offer,
    Receipt,
    StandingNotice,
    Succeed,
    SuccessionReply,
    Verdict,
    Want,
)
from agent.governance.charter import Charter
from agent.transport.transfer import CHUNK_BYTES

id16 = st.binary(min_size=16, max_size=16)
sha256 = st.text("0123456789abcdef", min_size=64, max_size=64)
ranges = st.lists(st.tuples(st.integers(0, 16_384), st.integers(0, 800)), max_size=20)
text = st.text(max_size=100)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=64)
manifests = st.builds(
    Manifest,
    number=st.integers(0, 2**32),
    sha256=sha256,
    parent=st.just("") | sha256,
    size=st.integers(1, 2**31),
    round=st.integers(0, 2**32),
)
loss = st.floats(0, 1000, allow_nan=False)
bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(
        Card,
        name=printable,
        public=st.binary(max_size=200),
        operator=printable,
        admission=st.sampled_from(["automatic", "approval"]),
        successions=st.lists(st.binary(max_size=50), max_size=8),
    ),
    st.just(CharterNotice(charter=Charter(name="c", base_name="b", base_sha256="a" * 64, base_bytes=5))),
    st.builds(
        JoinRequest,
        public=st.binary(max_size=200),
        proof=st.binary(min_size=32, max_size=32),
        nickname=printable,
    ),
    st.builds(JoinReply, accepted=st.booleans(), username=text, password=text, message=text, advice=text),
    st.builds(
        Announcement,
        sequence=st.integers(0, 2**60),
        round=st.integers(0, 2**32),
        phase=st.sampled_from(["open", "merging", "trial", "closed"]),
        deadline=st.integers(0, 2**60),
        release=manifests,
        candidate=st.none() | manifests,
        seal_key=st.binary(max_size=1300),
    ),
    st.builds(
        Offer,
        transfer=id16,
        purpose=st.sampled_from(["update", "adapter"]),
        round=st.integers(0, 2**32),
        adapter=sha256,
        size=st.integers(1, 2**31),
        chunk_bytes=st.just(CHUNK_BYTES),
        sha256=st.binary(min_size=32, max_size=32),
        sealed_key=st.binary(max_size=1300),
    ),
    st.builds(Chunk, transfer=id16, index=st.integers(0, 16_383), data=st.binary(min_size=1, max_size=300)),
    st.builds(Leave, about=id16),
    st.builds(Succeed, public=st.binary(max_size=200), proof=st.binary(min_size=64, max_size=64)),
    st.builds(SuccessionReply, accepted=st.booleans(), username=text, password=text),
    st.builds(StandingNotice, standing=st.just("revoked"), reason=text, at=st.integers(0, 2**40)),
    st.builds(Want, adapter=sha256, missing=ranges),
    st.builds(
        Verdict,
        about=id16,
        round=st.integers(1, 2**32),
        candidate=sha256,
        before=loss,
        after=loss,
        targets=st.integers(1, 2**40),
    ),
    st.builds(
        Receipt,
        about=id16,
        state=st.sampled_from(["done", "missing", "refused"]),
        missing=ranges,
        reason=st.text("abc-", max_size=64),
        message=text,
        advice=text,
    ),
)


@given(bodies)
def test_body_comes_back_as_it_was_sent(body: Body) -> None:
    assert type(body).decode(body.encode()) == body


@given(bodies, st.data())
def test_body_with_a_changed_byte_is_another_valid_body_or_refused(body: Body, data: st.DataObject) -> None:
    encoded = bytearray(body.encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        found = type(body).decode(bytes(encoded))
    except MalformedMessageError:
        return
    assert found.encode() == bytes(encoded)  # nothing is read that would be written otherwise


@given(st.binary(max_size=400), st.sampled_from(sorted(KINDS)))
def test_any_bytes_are_a_body_or_malformed(data: bytes, kind: str) -> None:
    try:
        found = KINDS[kind].decode(data)
    except MalformedMessageError:
        return
    assert found.encode() == data


def test_every_kind_has_one_body() -> None:
    assert len(set(KINDS.values())) == len(KINDS) == 16


def _fields(**other: object) -> bytes:
    fields: dict[str, object] = {
        "about": bytes(16),
        "round": 1,
        "candidate": "a" * 64,
        "before": 2.0,
        "after": 1.0,
        "targets": 10,
    }
    return canonical.encode({**fields, **other})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "other",
    [
        {"after": -1.0},
        {"after": 1e9},
        {"targets": 0},
        {"round": 0},
        {"about": bytes(15)},
        {"candidate": "A" * 64},
        {"more": 1},
        {"before": None},
    ],
)
def test_verdict_that_makes_no_sense_is_refused(other: dict[str, object]) -> None:
    Verdict.decode(_fields())
    with pytest.raises(MalformedMessageError):
        Verdict.decode(_fields(**other))


@pytest.mark.parametrize(
    ("size", "chunk_bytes", "fits"),
    [(10, CHUNK_BYTES, True), (10, 10, True), (10 * CHUNK_BYTES, CHUNK_BYTES, True), (10, 9, False), (2**30, 1, False)],
)
def test_offer_in_many_small_chunks_is_refused(size: int, chunk_bytes: int, *, fits: bool) -> None:
    said: dict[str, canonical.Value] = {
        "transfer": bytes(16),
        "purpose": "update",
        "round": 1,
        "adapter": "a" * 64,
        "size": size,
        "chunk_bytes": chunk_bytes,
        "sha256": bytes(32),
        "sealed_key": b"",
    }
    if fits:
        assert Offer.decode(canonical.encode(said)).plan.chunk_count <= 10
        return
    with pytest.raises(MalformedMessageError, match="more than one"):
        Offer.decode(canonical.encode(said))


@pytest.mark.parametrize("kind", [Receipt, Want])
def test_ranges_that_name_more_chunks_than_a_transfer_can_have_are_refused(kind: type[Receipt | Want]) -> None:
    rest = {"about": bytes(16), "state": "missing"} if kind is Receipt else {"adapter": "a" * 64}
    for ranges, fits in (([[0, 16_384]], True), ([[0, 16_383], [5, 2]], False), ([[0, 16_384]] * 256, False)):
        data = canonical.encode({**rest, "missing": ranges})  # type: ignore[dict-item]
        if fits:
            assert kind.decode(data).missing == [(0, 16_384)]
            continue
        with pytest.raises(MalformedMessageError, match="16,384 chunks"):
            kind.decode(data)


def test_number_is_not_read_from_text() -> None:
    with pytest.raises(MalformedMessageError):
        Verdict.decode(_fields(round="1"))


def test_body_that_is_too_large_is_refused() -> None:
    with pytest.raises(OversizedMessageError):
        Chunk.decode(canonical.encode({"transfer": bytes(16), "index": 0, "data": bytes(100_000)}))


def test_nickname_that_plays_with_the_terminal_is_refused() -> None:
    fields: dict[str, canonical.Value] = {"public": b"", "proof": bytes(32), "nickname": "\x1b[2J"}
    with pytest.raises(MalformedMessageError):
        JoinRequest.decode(canonical.encode(fields))


def test_body_of_very_many_values_is_refused_before_any_is_built() -> None:
    fullest = Want(adapter="a" * 64, missing=[(index, 1) for index in range(256)], have=["b" * 64] * 8)
    assert Want.decode(fullest.encode()) == fullest
    for count in (MAX_BODY_ITEMS, 60_000):
        with pytest.raises(MalformedMessageError, match="more than"):
            Want.decode(canonical.encode([1] * count))
