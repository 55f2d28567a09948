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
from agent.errors import RevokedSenderError, UnknownSenderError
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


@dataclass(frozen=True, slots=True)
class Former:
    """A message of a device that is no member, any more or yet: it may ask for its answer again, and gets no further.

    Attributes:
        row: what the book has of it.
        envelope: the message, which is its.
        why: it is dropped.
    """

    row: DeviceRow
    envelope: Envelope
    why: RevokedSenderError | UnknownSenderError


class Register:
    """Who is who.

    Args:
        store: which has the book of members.

    Attributes:
        known: the members' public keys, by id.
        windows: of the counters that each of them has used.
    """

    def __init__(self, store: HubStore) -> None:
        self._store = store
        self.windows: dict[str, ReplayWindow] = {}
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
            self.windows.setdefault(device, row.replay)
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
            self.windows.setdefault(device, row.replay)
        else:
            self._outside[device] = row
            self.known.pop(device, None)

    def note_succession(self, old: str, new: str) -> None:
        """A device has other keys from now on; its anti-replay window goes with it."""
        for device in (old, new):
            self.note(device)

    def former(self, unverified: Unverified) -> Former | None:
        """Give the message of a device that asked to be let in and is no member, if it is one's.

        Raises:
            BadSignatureError: it is not the sender's.
        """
        row = self._outside.get(unverified.sender)
        return None if row is None else Former(row, verify(unverified, row.public), self.stranger(row.device))

    def stranger(self, device: str) -> RevokedSenderError | UnknownSenderError:
        """Say why messages of somebody who is no member are dropped."""
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
