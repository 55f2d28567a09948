"""Make a week of a laptop's readings up: ``python -m tools.governor_week > week.jsonl``. It is synthetic, not recorded.

The week of somebody who works on weekdays, takes the laptop along on Tuesday and Thursday, plays on Saturday, and lets
the disk fill up on Sunday. ``docs/governor-week.png`` is its replay.
"""

# ruff: noqa: INP001 (a script by itself)
from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from agent.device.readings import Readings, Recorded

MONDAY = datetime(2026, 3, 2)  # noqa: DTZ001 (the clock on the wall)
EVERY = 60
_AT_WORK = ((9.0, 12.3), (13.1, 17.5))
_EVENINGS = {0: (20, 22), 1: (20.5, 22.5), 2: (19, 21), 3: (20, 23), 4: (21, 23.5), 5: (14, 23), 6: (15, 21)}
_AWAY = {1: (10.0, 15.0), 3: (17.5, 19.0)}
"""Hours on the battery: in a café, on a train whose network is a telephone's."""


def week(seed: int) -> Iterator[Recorded]:
    """Give a line a minute, but for the hours in which the lid is closed."""
    chance = random.Random(seed)
    idle, charge, heat, disk = 3600.0, 90.0, 45.0, 60_000.0
    for number in range(7 * 86_400 // EVERY):
        at = MONDAY + timedelta(seconds=number * EVERY)
        day, hour = at.weekday(), at.hour + at.minute / 60
        if day in {1, 3} and 0.5 <= hour < 6:
            continue
        used = _is_used(day, hour) and chance.random() < 0.72
        idle = chance.uniform(0, 20) if used else idle + EVERY
        away = day in _AWAY and _AWAY[day][0] <= hour < _AWAY[day][1]
        charge = max(5.0, charge - 0.28) if away else min(100.0, charge + 0.9)
        playing = day == 5 and 16 <= hour < 20
        building = day == 2 and 14 <= hour < 15.2
        others = 85.0 if playing else 70.0 if building else 12.0 if used else 2.0
        others = min(100.0, max(0.0, others + chance.gauss(0, others / 6) + (60 if chance.random() < 0.003 else 0)))
        heat += 0.25 * (42 + 0.5 * others + (22 if day == 3 and 13 <= hour < 16 else 0) - heat) + chance.gauss(0, 0.8)
        disk = 60_000.0 if day == 6 and hour >= 18 else disk - (140 if day == 6 and hour >= 9 else 0.5)
        yield Recorded(
            at=at,
            readings=Readings(
                idle_seconds=round(idle, 1),
                on_battery=away,
                charge_percent=round(charge),
                temperature_c=round(heat, 1),
                others_cpu_percent=round(others, 1),
                memory_pressure_percent=round(chance.uniform(12, 40), 1) if building and hour > 14.5 else 0.0,
                memory_available_percent=round(9 + chance.uniform(0, 6), 1) if building else 55.0,
                disk_free_mb=round(max(300.0, disk)),
                metered=day == 3 and away,
                temperature_zone="x86_pkg_temp",
                absent=frozenset({"undervoltage", "throttled"}),
            ),
        )


def _is_used(day: int, hour: float) -> bool:
    """Say whether somebody sits in front of it."""
    evening = _EVENINGS[day][0] <= hour < _EVENINGS[day][1]
    return evening or (day < 5 and any(begin <= hour < end for begin, end in _AT_WORK))


def main() -> None:
    """Print the week."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    for recorded in week(parser.parse_args().seed):
        print(recorded.to_line())


if __name__ == "__main__":
    main()
