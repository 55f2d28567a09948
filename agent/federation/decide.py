"""What a device does next: a pure function of what the hub announced and what the device has.

No clock, socket or disk: the daemon asks again after everything that happens.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from agent.federation.messages import Announcement, Manifest


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
        training_allowed: what the governor says; ``reason`` when it says no.
    """

    announcement: Announcement | None
    adopted: tuple[int, str] | None
    declined: AbstractSet[str]
    here: AbstractSet[str]
    sent_round: int
    judged: AbstractSet[str]
    has_text: bool
    training_allowed: bool = True
    reason: str = ""


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
    """Take a release into use, if it is not worse on held-out text."""

    release: Manifest


@dataclass(frozen=True, slots=True)
class Train:
    """Train for a round, from a release."""

    round: int
    start: Manifest
    seal_key: bytes


Action: TypeAlias = Wait | Fetch | Judge | Adopt | Train


def next_action(now: Situation) -> Action:
    """Say what the device does next."""
    seen = now.announcement
    if seen is None:
        return Wait("waiting for the hub's first word")
    release = seen.release
    if release.sha256 not in now.here:
        return Fetch(release)
    in_use = now.adopted is not None and now.adopted[1] == release.sha256
    if not in_use and release.sha256 not in now.declined:
        return Adopt(release)
    if not now.has_text:
        return Wait("no text to learn from yet: add some with `bramble data add PATH`")
    if not now.training_allowed:
        return Wait(now.reason)
    return _for_phase(now, seen)


def _for_phase(now: Situation, seen: Announcement) -> Action:
    if seen.phase == "closed":
        return Wait(f"the community has closed after round {seen.round}; release {seen.release.number} is in use")
    if seen.phase == "trial" and seen.candidate is not None:
        return _for_candidate(now, seen, seen.candidate)
    if seen.phase == "open" and seen.seal_key:
        if now.sent_round >= seen.round:
            return Wait(f"round {seen.round}: update made, waiting for the others")
        return Train(round=seen.round, start=seen.release, seal_key=seen.seal_key)
    return Wait(f"round {seen.round}: the hub is merging")


def _for_candidate(now: Situation, seen: Announcement, candidate: Manifest) -> Action:
    if candidate.sha256 in now.judged:
        return Wait(f"round {seen.round}: candidate judged, waiting for the hub's decision")
    if candidate.sha256 not in now.here:
        return Fetch(candidate)
    return Judge(candidate=candidate, current=seen.release, round=seen.round)
