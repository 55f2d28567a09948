"""Hours of the week: `mon-fri 22:00-07:00` as an owner writes them, and what they say about a moment.

Times are those of the clock on the wall. An interval that ends before it begins goes over midnight and belongs to the
day on which it begins; without days it holds on each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY = 24 * 60
MINUTES_A_WEEK = 7 * MINUTES_A_DAY
_INTERVAL = re.compile(r"(?:(?P<days>[a-z,\-]+)\s+)?(?P<from>\d\d?:\d\d)\s*-\s*(?P<to>\d\d?:\d\d)")
_EXAMPLE = "write 22:00-07:00 or mon-fri 22:00-07:00"


@dataclass(frozen=True, slots=True)
class Moment:
    """What the hours say about a moment.

    Attributes:
        open: whether it is within them.
        since: when that became so; none where it always is.
        until: when that ends; none where it never does.
    """

    open: bool
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class WeekHours:
    """Some minutes of the week.

    Attributes:
        minutes: a flag for each minute from Monday 00:00, 10,080 in all.
        edges: the minutes at which the flag changes, ascending; as in a ring, the first change follows the last.
    """

    minutes: bytes
    edges: tuple[int, ...]

    @classmethod
    def of(cls, hours: Sequence[str], quiet: Sequence[str] = ()) -> WeekHours:
        """Take the minutes in some intervals that are in none of others.

        Args:
            hours: intervals; none at all means the whole week.
            quiet: intervals that are taken out of them.

        Raises:
            ValueError: an interval cannot be read, or has no minute.
        """
        minutes = bytearray((b"\0" if hours else b"\1") * MINUTES_A_WEEK)
        ends: set[int] = set()
        for text, flag in (*((text, b"\1") for text in hours), *((text, b"\0") for text in quiet)):
            for first, last in _intervals(text):
                over = max(0, last - MINUTES_A_WEEK)
                minutes[first : last - over] = flag * (last - over - first)
                minutes[:over] = flag * over
                ends |= {first, last % MINUTES_A_WEEK}
        edges = sorted(minute for minute in ends if minutes[minute] != minutes[minute - 1])
        return cls(minutes=bytes(minutes), edges=tuple(edges))

    @property
    def longest(self) -> int:
        """The longest time in one piece, minutes; a week where there is no other."""
        if not self.edges:
            return MINUTES_A_WEEK if self.minutes[0] else 0
        ring = (*self.edges, self.edges[0] + MINUTES_A_WEEK)
        return max(after - before for before, after in pairwise(ring) if self.minutes[before])

    def at(self, when: datetime) -> Moment:
        """Say whether a moment of the local clock is within these hours."""
        minute = when.weekday() * MINUTES_A_DAY + when.hour * 60 + when.minute
        is_open = bool(self.minutes[minute])
        if not self.edges:
            return Moment(open=is_open, since=None, until=None)
        begins = max((edge for edge in self.edges if edge <= minute), default=self.edges[-1] - MINUTES_A_WEEK)
        ends = min((edge for edge in self.edges if edge > minute), default=self.edges[0] + MINUTES_A_WEEK)
        whole = when.replace(second=0, microsecond=0)
        return Moment(
            open=is_open,
            since=whole - timedelta(minutes=minute - begins),
            until=whole + timedelta(minutes=ends - minute),
        )


def _intervals(text: str) -> list[tuple[int, int]]:
    """Give the minutes of the week at which an interval begins and ends, for each of its days.

    Raises:
        ValueError: it cannot be read, or has no minute.
    """
    found = _INTERVAL.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} are no hours; {_EXAMPLE}")
    start, end = _minute(found["from"], text), _minute(found["to"], text)
    if start in {end, MINUTES_A_DAY}:
        raise ValueError(f"{text!r} has no minute; write 00:00-24:00 for a whole day")
    length = end - start if end > start else end + MINUTES_A_DAY - start
    return [
        (day * MINUTES_A_DAY + start, day * MINUTES_A_DAY + start + length) for day in _days(found["days"] or "", text)
    ]


def _minute(clock: str, text: str) -> int:
    hour, minute = (int(part) for part in clock.split(":"))
    if minute > 59 or hour * 60 + minute > MINUTES_A_DAY:
        raise ValueError(f"{clock} in {text!r} is no time of day; {_EXAMPLE}")
    return hour * 60 + minute


def _days(names: str, text: str) -> list[int]:
    """Give the days' numbers, Monday being 0. A range may go over Sunday: `fri-mon`."""
    if not names:
        return list(range(7))
    found: list[int] = []
    for part in names.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise ValueError(f"{part!r} in {text!r} names no day; days are {', '.join(DAYS)}")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found += [day % 7 for day in range(start, end + 1 if end >= start else end + 8)]
    return found
