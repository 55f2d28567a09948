from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto import canonical
from agent.crypto.envelope import MAX_BODY_BYTES, MAX_BYTES, VERSION, Envelope, parse, sign, verify
from agent.crypto.identity import Identity
from agent.crypto.replay import MAX_COUNTER
from agent.errors import BadSignatureError, MalformedMessageError, OversizedMessageError, ProtocolError

SENDER = Identity.generate()
COMMUNITY = bytes(range(16))


def signed(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "kind": "update",
        "community": COMMUNITY,
        "counter": 7,
        "time": 1_700_000_000_000,
        "body": b"b",
    }
    return sign(SENDER, **{**fields, **changes})


@given(
    kind=st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True),
    community=st.binary(min_size=16, max_size=16),
    counter=st.integers(0, MAX_COUNTER),
    time=st.integers(0, 2**53 - 1),
    body=st.binary(max_size=300),
)
def test_what_is_signed_is_read_back(kind: str, community: bytes, counter: int, time: int, body: bytes) -> None:
    data = sign(SENDER, kind=kind, community=community, counter=counter, time=time, body=body)
    unverified = parse(data)
    assert (unverified.kind, unverified.community, unverified.sender, unverified.counter) == (
        kind,
        community,
        SENDER.id,
        counter,
    )
    assert verify(unverified, SENDER.public) == Envelope(
        version=VERSION, kind=kind, community=community, sender=SENDER.id, counter=counter, time=time, body=body
    )


def test_any_changed_byte_is_refused() -> None:
    data = signed(body=b"the body of an update")
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            with pytest.raises(ProtocolError):
                verify(parse(bytes(changed)), SENDER.public)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "release"},
        {"community": bytes(16)},
        {"counter": 8},
        {"time": 1},
        {"body": b"c"},
    ],
)
def test_any_changed_field_is_refused(change: dict[str, Any]) -> None:
    honest, other = parse(signed()), parse(signed(**change))
    mixed = dataclasses.replace(honest, claimed=other.claimed, digest=other.digest)
    with pytest.raises(BadSignatureError):
        verify(mixed, SENDER.public)


def test_a_message_in_anothers_name_is_refused() -> None:
    thief = Identity.generate()
    fields = canonical.decode(signed(), max_bytes=MAX_BYTES)
    assert isinstance(fields, list)
    forged = canonical.encode([*fields[:7], thief.sign(parse(signed()).digest)])
    with pytest.raises(BadSignatureError):
        verify(parse(forged), SENDER.public)
    with pytest.raises(BadSignatureError):
        verify(parse(forged), thief.public)


def test_a_version_to_come_is_named() -> None:
    with pytest.raises(MalformedMessageError, match="version 3"):
        parse(canonical.encode([3, "something", "else"]))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, True),
        (0, "1"),
        (1, ""),
        (1, "Update"),
        (1, "a" * 33),
        (1, b"update"),
        (2, bytes(15)),
        (3, "a" * 51),
        (3, "1" * 52),
        (4, -1),
        (4, True),
        (4, 2**63),
        (5, -1),
        (5, False),
        (5, 2**53),
        (5, 1.5),
        (6, "text"),
        (7, bytes(63)),
        (7, None),
    ],
)
def test_a_field_out_of_range_is_refused(position: int, value: Any) -> None:
    fields = canonical.decode(signed(), max_bytes=MAX_BYTES)
    assert isinstance(fields, list)
    fields[position] = value
    with pytest.raises(MalformedMessageError):
        parse(canonical.encode(fields))


@pytest.mark.parametrize("value", [[], {}, None, b"", [1], [1] * 8, [1] * 17])
def test_what_is_no_envelope_is_refused(value: Any) -> None:
    with pytest.raises(MalformedMessageError):
        parse(canonical.encode(value))


def test_the_largest_body_fits_and_a_larger_one_is_refused() -> None:
    longest = signed(kind="a" * 32, counter=MAX_COUNTER, time=2**53 - 1, body=bytes(MAX_BODY_BYTES))
    assert len(longest) <= MAX_BYTES
    assert len(parse(longest).claimed.body) == MAX_BODY_BYTES
    with pytest.raises(OversizedMessageError):
        signed(body=bytes(MAX_BODY_BYTES + 1))
    with pytest.raises(OversizedMessageError):
        parse(bytes(MAX_BYTES + 1))


def test_a_field_out_of_range_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="kind"):
        signed(kind="No")
    with pytest.raises(ValueError, match="community"):
        signed(community=b"")


@given(st.binary(max_size=400))
def test_any_bytes_give_an_error_of_the_protocol(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        verify(parse(data), SENDER.public)
