"""Where an update counts: in the merge of its own round, in a later one, or nowhere. A pure rule.

An update is made for a round and trained from a release. It counts in the next merge there is: that of the current
round while it takes updates, and that of the round after it while the current one is merged or tried. Two things make
it too old: more than ``max_staleness`` rounds between its own and that merge, for then the key that it was sealed for
is forgotten; and more than ``max_staleness`` releases between its start and the release that it would be merged into,
counting the candidate on trial as one that may be promoted.

The weight follows from the releases alone (:func:`staleness`), as in FedBuff (Nguyen et al. 2022): an update for a
round whose candidate was rejected started from the very release that still stands, and is not stale at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.crypto.sealing import SealKey
from agent.errors import UpdateRefusedError
from agent.federation.draw import lot
from agent.governance.charter import RoundRules
from agent.hub.rounds import TAKING, RoundState
from agent.update.delta import Factors

_TRAIN_AGAIN = "Train for the round that is announced."


@dataclass(frozen=True, slots=True)
class Line:
    """The releases that lead to the current one.

    Attributes:
        positions: by hex SHA-256 of the adapter, how many releases came before it; only of adapters that are kept.
        current: hex SHA-256 of the one that stands.
        withdrawn: those that an operator went back from.
    """

    positions: Mapping[str, int]
    current: str
    withdrawn: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """What an update for one round is held against.

    Attributes:
        start: hex SHA-256 of the release that the round starts from.
        seal_key: what updates for it are sealed for.
        draw: devices whose lot is below it take part; None for everybody.
        factors: what devices train in it.
    """

    start: str
    seal_key: SealKey
    draw: int | None = None
    factors: Factors = "both"


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the place of an update depends on.

    Attributes:
        state: where the hub is.
        rules: the charter's.
        line: the releases.
        terms: by round, of every round whose key is not forgotten.
        last_round: after which the community closes; None for never.
        community: 32 hexadecimal digits, which the lots of a draw are made of.
    """

    state: RoundState
    rules: RoundRules
    line: Line
    terms: Mapping[int, RoundTerms]
    last_round: int | None
    community: str


def next_merge(state: RoundState) -> int:
    """Give the round in whose merge an update counts that comes now."""
    return state.number if state.phase in TAKING else state.number + 1


def staleness(line: Line, start: str) -> int:
    """Give how many releases were promoted since an update's start."""
    return line.positions[line.current] - line.positions[start]


def place(now: Situation, *, device: str, round_number: int, start: str) -> int:
    """Give the round in whose merge an update counts.

    Args:
        now: where the hub is.
        device: who made it.
        round_number: the round that it was made for.
        start: hex SHA-256 of the release that it was trained from.

    Raises:
        UpdateRefusedError: it counts nowhere; the reason is ``rolled-back``, ``round-closed``, ``too-late``,
            ``wrong-start``, ``release-gone`` or ``not-drawn``.
    """
    state, line = now.state, now.line
    if start in line.withdrawn:
        raise _refused(f"release {start[:10]} was rolled back, and what was trained from it", "rolled-back")
    merge = next_merge(state)
    if state.phase == "closed" or (now.last_round is not None and merge > now.last_round):
        raise _refused(f"the hub is at round {state.number} ({state.phase}), which is the last", "round-closed")
    if merge - round_number > now.rules.max_staleness:
        raise _too_late(f"it is for round {round_number}, the next merge is of round {merge}", now.rules)
    terms = now.terms.get(round_number)
    if terms is None:
        words = f"round {round_number} takes no updates: the hub is at round {state.number} ({state.phase})"
        raise _refused(words, "round-closed")
    if now.rules.mode == "synchronous" and start != terms.start:
        words = f"the update started from {start[:10]}, round {round_number} started from {terms.start[:10]}"
        raise _refused(words, "wrong-start")
    if start not in line.positions:
        raise _refused(f"release {start[:10]}, which it was trained from, is not kept here", "release-gone")
    behind = staleness(line, start) + (merge > state.number)
    if behind > now.rules.max_staleness:
        raise _too_late(f"it started {behind} releases before the one that it would be merged into", now.rules)
    own = lot(device, community=now.community, round_number=round_number, release=terms.start)
    if terms.draw is not None and own >= terms.draw:
        raise UpdateRefusedError(
            f"device {device[:10]} was not drawn for round {round_number}",
            advice="Wait for a round whose announcement draws this device.",
            reason="not-drawn",
        )
    return merge


def _too_late(what: str, rules: RoundRules) -> UpdateRefusedError:
    limit = rules.max_staleness
    return _refused(f"the update is too late: {what}, and the charter allows {limit}", "too-late")


def _refused(what: str, reason: str) -> UpdateRefusedError:
    return UpdateRefusedError(what, advice=_TRAIN_AGAIN, reason=reason)
