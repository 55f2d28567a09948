"""Messages that were refused: each counted by its reason, and told of, but never so often that a flood fills a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from agent.errors import ProtocolError, error_classes
from agent.events import Events, Value
from agent.transport.bucket import Bucket

UNEXPECTED = "unexpected"
"""A message whose handling failed in a way that nobody foresaw: a defect of this program."""

TOLD_AT_ONCE = 50
"""Refusals for one reason that are told of one by one."""

TOLD_A_SECOND = 0.2
"""And how many of them after that; each says how many it stands for."""


def reasons() -> tuple[str, ...]:
    """Give every reason for which a message can be refused: the codes of all protocol errors."""
    known = [code for code, cls in error_classes().items() if issubclass(cls, ProtocolError)]
    return (*sorted(known), UNEXPECTED)


class Refusals:
    """Counts refused messages.

    Args:
        events: where to tell of them.
        clock: monotonic seconds.
    """

    def __init__(self, events: Events, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self.counts: Counter[str] = Counter()
        """By reason, since the start."""
        self._untold: Counter[str] = Counter()
        self._buckets = {reason: Bucket(burst=TOLD_AT_ONCE, rate=TOLD_A_SECOND) for reason in reasons()}

    def note(self, reason: str, text: str, **fields: Value) -> bool:
        """Count a refusal; tells of it too, unless many were told of just now. Says whether it did.

        Args:
            reason: the error's code, or ``UNEXPECTED``.
            text: for people.
            fields: the facts.
        """
        self.counts[reason] += 1
        self._untold[reason] += 1
        if not self._buckets[reason].take(1, self._clock()):
            return False
        times = self._untold.pop(reason)
        text += f" (and {times - 1:,} others like it)" if times > 1 else ""
        event = "message-failed" if reason == UNEXPECTED else "message-refused"
        self._events.say(event, text, code=reason, times=times, **fields)
        return True
