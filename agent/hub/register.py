"""The register: who the running hub takes messages from, and what it tells those whom it does not.

It is a picture of the book of members in memory, so that a message costs no look into the database. Stewards decide in
processes of their own (`bramble hub revoke`); the picture is held against the book at the beginning of each
transaction, so nothing of a device is handled once its revocation is on the disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent.crypto.envelope import Envelope, Unverified, verify
from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.errors import ReplayedMessageError, RevokedSenderError, UnknownSenderError
from agent.federation.messages import StandingNotice
from agent.hub.members import DeviceRow
from agent.hub.store import HubStore

QUIET_SECONDS = 30.0
"""A device that was revoked is told so at most this often, however much it sends."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What stewards decided since the last look: ids that were revoked, and devices that were approved."""

    revoked: Collection[str] = ()
    approved: Sequence[DeviceRow] = ()


class Register:
    """Who is who.

    Args:
        store: which has the book of members.

    Attributes:
        known: the members' public keys, by id.
    """

    def __init__(self, store: HubStore) -> None:
        self._store = store
        self._windows: dict[str, ReplayWindow] = {}
        self._outside: dict[str, DeviceRow] = {}
        self._decisions = -1
        self._told: dict[str, float] = {}
        self.known: dict[str, PublicIdentity] = {}

    def refresh(self) -> Decisions:
        """Look whether stewards decided something, and take it in."""
        decisions = self._store.decisions()
        if decisions == self._decisions:
            return Decisions()
        self._decisions = decisions
        return self._load()

    def _load(self) -> Decisions:
        """Read the whole book, and say what is in it that this register had not."""
        everybody = self._store.everybody()
        before = {standing: self._with(standing) for standing in ("revoked", "pending")}
        self._outside = {row.device: row for row in everybody if row.standing != "member"}
        members = {row.device: row for row in everybody if row.standing == "member"}
        for device in self.known.keys() - members.keys():
            del self.known[device]  # in place: others hold this very dictionary
        for device, row in members.items():
            self.known[device] = row.public
            self._windows.setdefault(device, row.replay)
        revoked = self._with("revoked") - before["revoked"]
        return Decisions(revoked, [members[device] for device in before["pending"] & members.keys()])

    def _with(self, standing: str) -> set[str]:
        return {device for device, row in self._outside.items() if row.standing == standing}

    def note(self, device: str) -> None:
        """Take in what the hub itself has just changed of one device."""
        row = self._store.device(device)
        if row is None:
            return
        if row.standing == "member":
            self._outside.pop(device, None)
            self.known[device] = row.public
            self._windows.setdefault(device, row.replay)
        else:
            self._outside[device] = row
            self.known.pop(device, None)

    def note_succession(self, old: str, new: str) -> None:
        """A device has other keys from now on; its anti-replay window goes with it."""
        for device in (old, new):
            self.note(device)

    def hear(self, unverified: Unverified) -> tuple[Envelope, ReplayWindow]:
        """Check that a message is a member's and new, and give it with the window that is to accept its counter.

        Raises:
            RevokedSenderError: its sender was put out.
            UnknownSenderError: its sender is no member.
            BadSignatureError: it is not the sender's.
            ReplayedMessageError: it was seen before, or is too old.
        """
        device = unverified.sender
        public, window = self.known.get(device), self._windows.get(device)
        if public is None or window is None:
            raise self._stranger(unverified)
        envelope = verify(unverified, public)
        if window.check(envelope.counter) != "new":
            raise ReplayedMessageError(
                f"message {envelope.counter} of {device[:10]} was seen before, or is too old", advice="It was dropped."
            )
        return envelope, window

    def former(self, unverified: Unverified) -> tuple[DeviceRow, Envelope] | None:
        """Give the message of a device that was a member and is out, if it is one's: it may ask for its answer again.

        Raises:
            BadSignatureError: it is not the sender's.
        """
        row = self._outside.get(unverified.sender)
        return None if row is None else (row, verify(unverified, row.public))

    def _stranger(self, unverified: Unverified) -> RevokedSenderError | UnknownSenderError:
        device = unverified.sender
        row = self._outside.get(device)
        if row is not None and row.standing == "revoked":
            return RevokedSenderError(f"{device[:10]} was revoked", advice="Its messages are dropped; it is told so.")
        if row is None:
            words = f"{device[:10]} is not a member of this community"
            return UnknownSenderError(words, advice="It must join with an invite first.")
        standings = {"pending": "is to be approved first", "left": "has left", "succeeded": "has other keys by now"}
        return UnknownSenderError(
            f"{device[:10]} {standings.get(row.standing, 'was not let in')}", advice="Its message was dropped."
        )

    def notice(self, device: str, *, now: float) -> StandingNotice | None:
        """Give what to tell a device that was revoked; nothing where it was told a moment ago."""
        row = self._outside.get(device)
        if row is None or row.standing != "revoked" or now - self._told.get(device, -QUIET_SECONDS) < QUIET_SECONDS:
            return None
        self._told[device] = now
        return StandingNotice(standing="revoked", reason=row.reason[:500], at=row.changed)
