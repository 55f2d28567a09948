from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.federation.draw import LOT_LIMIT, limit_for, lot

WHERE = {"community": "c" * 32, "round_number": 3, "release": "a" * 64}
devices = st.sets(st.text("abcdefg", min_size=1, max_size=6), max_size=40)


def drawn(found: set[str], limit: int | None, **where: object) -> set[str]:
    """Let every device find out by itself whether it is drawn."""
    return {device for device in found if limit is None or lot(device, **{**WHERE, **where}) < limit}  # type: ignore[arg-type]


@given(devices, st.integers(1, 40))
def test_exactly_as_many_devices_as_wanted_find_that_they_are_drawn(found: set[str], wanted: int) -> None:
    limit, count = limit_for(found, wanted, **WHERE)  # type: ignore[arg-type]
    assert len(drawn(found, limit)) == count == min(wanted, len(found))
    assert (limit is None) == (len(found) <= wanted)


@given(devices, st.integers(1, 20))
def test_whoever_is_drawn_stays_drawn_when_the_draw_is_widened(found: set[str], wanted: int) -> None:
    narrow, _ = limit_for(found, wanted, **WHERE)  # type: ignore[arg-type]
    wide, _ = limit_for(found, 2 * wanted, **WHERE)  # type: ignore[arg-type]
    assert drawn(found, narrow) <= drawn(found, wide)


def test_lots_differ_by_round_release_community_and_device_and_are_pinned() -> None:
    lots = {
        lot("ada", **WHERE),  # type: ignore[arg-type]
        lot("bob", **WHERE),  # type: ignore[arg-type]
        lot("ada", **{**WHERE, "round_number": 4}),  # type: ignore[arg-type]
        lot("ada", **{**WHERE, "release": "b" * 64}),  # type: ignore[arg-type]
        lot("ada", **{**WHERE, "community": "d" * 32}),  # type: ignore[arg-type]
    }
    assert len(lots) == 5
    assert all(0 <= one < LOT_LIMIT for one in lots)


def test_draws_are_fair_over_rounds() -> None:
    found = {f"device-{number}" for number in range(20)}
    times = dict.fromkeys(found, 0)
    for number in range(400):
        where = {**WHERE, "round_number": number}
        limit, _ = limit_for(found, 5, **where)  # type: ignore[arg-type]
        for device in drawn(found, limit, round_number=number):
            times[device] += 1
    assert sum(times.values()) == 400 * 5
    assert all(60 < count < 140 for count in times.values())  # 100 each is expected, with a spread of 9
