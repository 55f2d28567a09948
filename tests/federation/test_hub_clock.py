from __future__ import annotations

from agent.federation.hub_clock import HubClock

YEAR = 365 * 86_400.0


class Clocks:
    def __init__(self, wall: float) -> None:
        self.wall, self.ticks = wall, 5.0
        self.hub = HubClock(wall=lambda: self.wall, monotonic=lambda: self.ticks)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds


def test_device_whose_clock_is_years_ahead_says_the_hubs_time() -> None:
    clocks = Clocks(wall=1e9 + 10 * YEAR)
    assert clocks.hub.stamp() == int((1e9 + 10 * YEAR) * 1000)  # nothing was heard yet
    clocks.hub.heard(1_000_000_000_000)
    clocks.passes(7.0)
    assert clocks.hub.stamp() == 1_000_000_007_000
    assert clocks.hub.ahead_seconds == 10 * YEAR


def test_device_without_a_clock_says_1970_and_is_behind() -> None:
    clocks = Clocks(wall=12.0)
    clocks.hub.heard(1_000_000_000_000)
    assert clocks.hub.stamp() == 12_000
    assert clocks.hub.ahead_seconds < -30 * YEAR
    clocks.wall = -5.0
    assert clocks.hub.stamp() == 0  # an envelope knows no time before


def test_hub_whose_clock_goes_back_is_followed() -> None:
    clocks = Clocks(wall=1e9)
    clocks.hub.heard(1_000_000_000_000)
    clocks.hub.heard(5_000)
    clocks.passes(1.0)
    assert clocks.hub.stamp() == 6_000
