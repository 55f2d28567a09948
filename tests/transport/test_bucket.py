from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agent.transport.bucket import Bucket


def test_a_burst_goes_through_at_once_and_the_rest_as_it_flows_in() -> None:
    bucket = Bucket(burst=3, rate=2)
    assert [bucket.take(1, 10.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(1, 10.4)
    assert bucket.take(1, 10.5)
    assert not bucket.take(4, 1e9)  # it never holds more than the burst
    assert bucket.take(3, 1e9)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 50))))
def test_no_more_goes_through_than_burst_and_rate_whatever_the_clock_does(steps: list[tuple[float, float]]) -> None:
    bucket = Bucket(burst=100, rate=3)
    passed, latest, grown = 0.0, 0.0, 0.0
    for now, cost in steps:
        grown += max(0.0, now - latest)
        latest = now
        passed += cost if bucket.take(cost, now) else 0.0
        assert passed <= 100 + 3 * grown or math.isclose(passed, 100 + 3 * grown)
