"""What is under lock opens with the right secret, for its purpose, and never takes more memory than it may."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto.locking import MAX_MEMORY_BYTES, MAX_PASSES, Box, lock, unlock
from agent.errors import CorruptStateError, LockedKeysError

KEY = bytes(range(32))
LOCKED = Box.decode(lock(b"content", KEY, purpose="test"))
UNDER_PASSPHRASE = Box.decode(lock(b"content", "correct horse", purpose="test"))


def test_it_opens_with_the_right_secret_and_for_its_purpose_alone() -> None:
    assert unlock(LOCKED, KEY, purpose="test") == b"content"
    assert unlock(UNDER_PASSPHRASE, "correct horse", purpose="test") == b"content"
    for box, secret, purpose in (
        (LOCKED, bytes(32), "test"),
        (LOCKED, KEY, "other"),
        (UNDER_PASSPHRASE, "correct house", "test"),
        (UNDER_PASSPHRASE, "correct horse", "other"),
    ):
        with pytest.raises(LockedKeysError):
            unlock(box, secret, purpose=purpose)


@pytest.mark.parametrize(
    "other",
    [{"log_n": 15}, {"block": 4}, {"passes": 1}, {"salt": bytes(16)}, {"nonce": bytes(12)}, {"sealed": bytes(40)}],
)
def test_every_field_is_bound_to_the_content(other: dict[str, int]) -> None:
    with pytest.raises(LockedKeysError):
        unlock(replace(UNDER_PASSPHRASE, **other), "correct horse", purpose="test")


@pytest.mark.parametrize(
    "other",
    [
        {"log_n": 30},
        {"log_n": 2**40},
        {"block": 2**20},
        {"passes": MAX_PASSES + 1},
        {"salt": b""},
        {"log_n": 0},
        {"block": -1},
    ],
)
def test_box_that_asks_for_gigabytes_or_hours_is_refused_before_anything_is_computed(other: dict[str, int]) -> None:
    hostile = replace(UNDER_PASSPHRASE, **other)
    began = time.process_time()
    with pytest.raises(CorruptStateError, match="more memory or time"):
        Box.decode(hostile.encode())
    assert time.process_time() - began < 0.1


def test_largest_box_that_is_opened_stays_within_the_bound() -> None:
    assert MAX_MEMORY_BYTES == 128 * 8 << 18
    assert replace(UNDER_PASSPHRASE, log_n=18).is_affordable
    assert not replace(UNDER_PASSPHRASE, log_n=19).is_affordable


@given(st.binary(max_size=300))
def test_any_bytes_are_a_box_or_corrupt(data: bytes) -> None:
    try:
        box = Box.decode(data)
    except CorruptStateError:
        return
    assert box.encode() == data
