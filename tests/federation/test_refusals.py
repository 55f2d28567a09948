from __future__ import annotations

from agent.errors import ProtocolError, error_classes
from agent.events import Events
from agent.federation.refusals import TOLD_AT_ONCE, UNEXPECTED, Refusals, reasons


def test_every_protocol_error_is_a_reason_and_nothing_else_is() -> None:
    assert set(reasons()) == {cls.code for cls in error_classes().values() if issubclass(cls, ProtocolError)} | {
        UNEXPECTED
    }


def test_flood_is_counted_in_full_and_told_of_now_and_then() -> None:
    said: list[int] = []
    events = Events(quiet=True, listeners=[lambda _event, fields: said.append(int(str(fields["times"])))])
    now = 0.0
    refusals = Refusals(events, clock=lambda: now)
    for _ in range(10_000):
        refusals.note("malformed", "a message was refused")
    assert said == [1] * TOLD_AT_ONCE
    now = 60.0
    assert refusals.note("malformed", "a message was refused")
    assert said[-1] == 10_001 - TOLD_AT_ONCE
    assert refusals.counts == {"malformed": 10_001}
    assert sum(said) == 10_001
    assert refusals.note("replayed", "another kind is told of at once")
