"""Has this counter been seen before? A sliding window over a sender's counters (RFC 4303 section 3.4.3)."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from agent.errors import CorruptStateError

WINDOW = 1024
"""How far a message may lag behind the newest one of its sender, in messages."""

MAX_COUNTER = 2**63 - 1

Verdict: TypeAlias = Literal["new", "duplicate", "stale"]

_MASK = (1 << WINDOW) - 1
_BYTES = 8 + WINDOW // 8


class ReplayWindow:
    """Which of the last 1,024 counters of one sender were seen. No clock, no disk: the owner keeps ``to_bytes()``."""

    __slots__ = ("_next", "_seen")

    def __init__(self) -> None:
        self._next = 0  # one above the highest counter seen
        self._seen = 0  # bit i: counter _next - 1 - i was seen

    @property
    def next_counter(self) -> int:
        """One above the highest counter that was accepted; 0 at first."""
        return self._next

    def check(self, counter: int) -> Verdict:
        """Judge ``counter`` without remembering it, as one does before the signature is verified.

        Raises:
            ValueError: the counter is outside 0 .. 2**63 - 1.
        """
        if not 0 <= counter <= MAX_COUNTER:
            raise ValueError(f"a counter must lie in 0 .. 2**63 - 1, not {counter}")
        if counter >= self._next:
            return "new"
        age = self._next - 1 - counter
        if age >= WINDOW:
            return "stale"
        return "duplicate" if self._seen >> age & 1 else "new"

    def accept(self, counter: int) -> Verdict:
        """Judge ``counter`` and remember it if it is new. Call it only once the message is verified."""
        verdict = self.check(counter)
        if verdict != "new":
            return verdict
        if counter >= self._next:
            shift = counter + 1 - self._next
            self._seen = (self._seen << shift & _MASK) | 1 if shift < WINDOW else 1
            self._next = counter + 1
        else:
            self._seen |= 1 << (self._next - 1 - counter)
        return verdict

    def to_bytes(self) -> bytes:
        """Give the window as 136 bytes: the next counter (u64, big-endian), then the bitmap (big-endian)."""
        return self._next.to_bytes(8, "big") + self._seen.to_bytes(WINDOW // 8, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read back what ``to_bytes`` gave.

        Raises:
            CorruptStateError: the bytes are not a window.
        """
        window = cls()
        window._next = int.from_bytes(data[:8], "big")
        window._seen = int.from_bytes(data[8:], "big")
        if len(data) != _BYTES or window._next > MAX_COUNTER + 1 or window._seen.bit_length() > window._next:
            raise CorruptStateError(
                "The memory of a sender's counters cannot be read.",
                advice="Restore the state directory from a backup, or remove this sender and let it join again.",
            )
        return window

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ReplayWindow):
            return NotImplemented
        return (self._next, self._seen) == (other._next, other._seen)

    def __hash__(self) -> int:
        return hash((self._next, self._seen))

    def __repr__(self) -> str:
        return f"ReplayWindow(next_counter={self._next})"
