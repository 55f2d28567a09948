"""Devices that keep sending what no honest device sends: set aside for a while, remembered, and let back in.

A strike is one message that its device signed and that is wrong in itself: malformed, not finite, too large in norm,
of other shapes than the community's. Coming late, twice, or while another was drawn is no strike, and nothing is that
somebody else could have caused: a message that was sent again, moved to another topic, or merely names the device.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Row, delete, insert, select

from agent.hub import tables
from agent.hub.database import Database

STRIKES = 5
"""So many in :data:`WITHIN` set a device aside."""

WITHIN = 86_400
"""Seconds. A device of an older version makes one mistake a round; rounds of minutes find it out within the hour."""

FIRST_SECONDS = 3600
"""How long at first; twice as long each time after that."""

LONGEST_SECONDS = 7 * 86_400
"""And at most."""

BAD = frozenset(
    {
        "alpha",
        "compression",
        "factors",
        "malformed",
        "modules",
        "norm",
        "not-finite",
        "oversized",
        "rank",
        "seal-broken",
        "shape",
        "size",
        "tokens",
        "version",
        "wrong-header",
        "wrong-scaling",
    }
)
"""Reasons for refusing an update, or a message, that are strikes."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """What is held against a device.

    Attributes:
        strikes: since ``since``.
        since: Unix time of the first of them, seconds.
        times: how often it was set aside.
        until: Unix time until which it is; 0 for never.
        reason: of the last strike.
    """

    device: str
    strikes: int = 0
    since: int = 0
    times: int = 0
    until: int = 0
    reason: str = ""


def strike(before: Conduct, reason: str, now: int) -> Conduct:
    """Give what is held against a device after one more strike; none counts while it is set aside."""
    if now < before.until:
        return before
    fresh = now - before.since > WITHIN
    after = replace(
        before, strikes=1 if fresh else before.strikes + 1, since=now if fresh else before.since, reason=reason
    )
    if after.strikes < STRIKES:
        return after
    seconds = min(FIRST_SECONDS * 2 ** min(before.times, 30), LONGEST_SECONDS)
    return replace(after, strikes=0, since=now, times=before.times + 1, until=now + seconds)


class ConductBook(Database):
    """What is held against devices."""

    def conduct(self, device: str) -> Conduct:
        """Give what is held against a device."""
        with self.reading() as connection:
            row = connection.execute(select(tables.conduct).where(tables.conduct.c.device == device)).first()
        return Conduct(device) if row is None else _conduct(row)

    def conducts(self) -> dict[str, Conduct]:
        """Give everything that is held against anybody, by device."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.conduct).order_by(tables.conduct.c.device)).all()
        return {row.device: _conduct(row) for row in rows}

    def set_aside(self, now: float) -> dict[str, int]:
        """Give until when each device is set aside that is."""
        column = tables.conduct.c
        with self.reading() as connection:
            rows = connection.execute(select(column.device, column.until).where(column.until > now)).all()
        return {row.device: row.until for row in rows}

    def add_strike(self, device: str, reason: str, now: int) -> Conduct:
        """Hold one more thing against a device, and give all that is."""
        with self.transaction() as connection:
            after = strike(self.conduct(device), reason, now)
            connection.execute(delete(tables.conduct).where(tables.conduct.c.device == device))
            connection.execute(insert(tables.conduct).values(asdict(after)))
        return after

    def pardon(self, device: str, *, by: str) -> bool:
        """Forget what is held against a device, and write down who forgave it; False where that is nothing."""
        with self.transaction() as connection:
            held = self.conduct(device)
            gone = connection.execute(delete(tables.conduct).where(tables.conduct.c.device == device)).rowcount
            if gone:
                details = json.dumps({"device": device, "reason": held.reason, "until": held.until})
                values = {"at": int(time.time()), "act": "pardon", "operator": by, "details": details}
                connection.execute(insert(tables.acts).values(values))
        return bool(gone)


def _conduct(row: Row[Any]) -> Conduct:
    return Conduct(
        device=row.device,
        strikes=row.strikes,
        since=row.since,
        times=row.times,
        until=row.until,
        reason=row.reason,
    )
