"""What a device does next: a pure function of what the hub announced and what the device has.

No clock, socket or disk: the daemon asks again after everything that happens.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from agent.federation.draw import lot
from agent.federation.messages import Announcement, Manifest
from agent.update.delta import Factors

CHARTER_CHANGED = (
    "the community's charter was changed: read it with `bramble charter`; nothing is done until you have agreed to it"
)
"""Why a device waits that could go on."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the decision depends on.

    Attributes:
        announcement: the newest one, if any was seen.
        adopted: number and hash of the release in use, if any.
        declined: hashes of releases that were judged and found worse here.
        here: hashes of the adapters on this disk.
        sent_round: the last round for which an update was put into the outbox; 0 for none.
        judged: hashes of the candidates whose verdict was put into the outbox.
        has_text: the owner has given text, with consent.
        charter_changed: the hub shows a charter that the owner has not agreed to.
        training_allowed: what the governor says; ``reason`` when it says no.
        orphaned: hash of a release that a hub made and forgot, since it was restored from a backup; empty for none.
        device: this device's id, and the community's: what its lot in a draw is made of.
    """

    announcement: Announcement | None
    adopted: tuple[int, str] | None
    declined: AbstractSet[str]
    here: AbstractSet[str]
    sent_round: int
    judged: AbstractSet[str]
    has_text: bool
    charter_changed: bool = False
    training_allowed: bool = True
    reason: str = ""
    orphaned: str = ""
    device: str = ""
    community: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now, and why, in words for the owner."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the hub for an adapter."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Judge:
    """Try a candidate on held-out text, and tell the hub."""

    candidate: Manifest
    current: Manifest
    round: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take a release into use, if it is not worse on held-out text.

    Attributes:
        anyway: the release in use was withdrawn or orphaned: this one takes its place without being compared with it.
    """

    release: Manifest
    anyway: bool = False


@dataclass(frozen=True, slots=True)
class Train:
    """Train for a round, from a release."""

    round: int
    start: Manifest
    seal_key: bytes
    factors: Factors = "both"


Action: TypeAlias = Wait | Fetch | Judge | Adopt | Train


def next_action(now: Situation) -> Action:
    """Say what the device does next."""
    seen = now.announcement
    if seen is None or now.charter_changed:
        return Wait(CHARTER_CHANGED if now.charter_changed else "waiting for the hub's first word")
    release = seen.release
    if release.sha256 not in now.here:
        return Fetch(release)
    in_use = now.adopted is not None and now.adopted[1] == release.sha256
    withdrawn = now.adopted is not None and (seen.withdraws(now.adopted[0]) or now.adopted[1] == now.orphaned)
    if not in_use and (withdrawn or release.sha256 not in now.declined):
        return Adopt(release, anyway=withdrawn)
    if not now.has_text:
        return Wait("no text to learn from yet: add some with `bramble data add PATH`")
    if not now.training_allowed:
        return Wait(now.reason)
    return _for_phase(now, seen)


def goes_on(round_number: int, start: Manifest, seen: Announcement, *, max_staleness: int) -> bool:
    """Say whether a training under way is still worth finishing: whether its update could still count.

    Args:
        round_number: the round it is for.
        start: the release it began with.
        seen: the newest announcement.
        max_staleness: how many rounds an update may be late.
    """
    if seen.phase == "closed" or seen.withdraws(start.number):
        return False
    merge = seen.round if seen.phase == "open" else seen.round + 1
    return merge - round_number <= max_staleness


def _for_phase(now: Situation, seen: Announcement) -> Action:
    if seen.phase == "closed":
        return Wait(f"the community has closed after round {seen.round}; release {seen.release.number} is in use")
    if seen.phase == "trial" and seen.candidate is not None and seen.candidate.sha256 not in now.judged:
        if seen.candidate.sha256 not in now.here:
            return Fetch(seen.candidate)
        return Judge(candidate=seen.candidate, current=seen.release, round=seen.round)
    if seen.collects:
        return _for_collection(now, seen)
    if seen.phase == "trial":
        return Wait(f"round {seen.round}: candidate judged, waiting for the hub's decision")
    return Wait(f"round {seen.round}: the hub is merging")


def _for_collection(now: Situation, seen: Announcement) -> Action:
    number = seen.collects
    if now.sent_round >= number:
        return Wait(f"round {number}: update made, waiting for the others")
    own = lot(now.device, community=now.community, round_number=number, release=seen.release.sha256)
    if seen.draw is not None and own >= seen.draw:
        return Wait(f"round {number}: other devices were drawn this time")
    return Train(round=number, start=seen.release, seal_key=seen.seal_key, factors=seen.factors)
