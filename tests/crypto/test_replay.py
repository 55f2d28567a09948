from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto.replay import MAX_COUNTER, WINDOW, ReplayWindow
from agent.errors import CorruptStateError

counters = st.lists(st.integers(0, 3 * WINDOW) | st.integers(0, MAX_COUNTER), max_size=60)


@given(counters)
def test_it_judges_as_a_perfect_memory_would_within_its_width(sequence: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    for counter in sequence:
        newest = max(seen, default=-1)
        expected = "stale" if counter <= newest - WINDOW else "duplicate" if counter in seen else "new"
        assert window.check(counter) == expected
        assert window.accept(counter) == expected
        if expected == "new":
            seen.add(counter)


@given(counters)
def test_it_survives_a_restart(sequence: list[int]) -> None:
    window = ReplayWindow()
    for counter in sequence:
        window.accept(counter)
    data = window.to_bytes()
    assert len(data) == 136
    assert ReplayWindow.from_bytes(data) == window
    assert ReplayWindow.from_bytes(data).to_bytes() == data


def test_the_first_counter_is_new_once() -> None:
    window = ReplayWindow()
    assert [window.accept(0), window.accept(0), window.next_counter] == ["new", "duplicate", 1]


@pytest.mark.parametrize("counter", [-1, MAX_COUNTER + 1])
def test_a_counter_out_of_range_is_a_mistake_of_the_caller(counter: int) -> None:
    with pytest.raises(ValueError, match="counter"):
        ReplayWindow().accept(counter)


@pytest.mark.parametrize("data", [b"", bytes(135), bytes(137), b"\xff" * 136, bytes(8) + b"\x01" * 128])
def test_damaged_memory_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptStateError):
        ReplayWindow.from_bytes(data)
