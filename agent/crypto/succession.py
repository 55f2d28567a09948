"""Keys that come after others: the old ones sign the new ones, and the new ones sign that they take over.

So whoever pinned the old keys can follow to the new ones without asking anybody, and nobody can be made the successor
of keys against the will of either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from agent.crypto import canonical
from agent.crypto.identity import Identity, PublicIdentity
from agent.errors import BadSignatureError, MalformedMessageError, ProtocolError

MAX_BYTES = 4096
MAX_LINKS = 8
"""Successions that a hub tells of: whoever was away for more has to join again."""


@dataclass(frozen=True, slots=True)
class Succession:
    """One pair of keys after another.

    Attributes:
        old: who signed.
        new: who takes over, in the same role.
        signature: of the old keys over :func:`statement`.
        countersignature: of the new ones over the same.
    """

    old: PublicIdentity
    new: PublicIdentity
    signature: bytes
    countersignature: bytes

    @classmethod
    def make(cls, community: bytes, old: Identity, new: Identity) -> Self:
        """Sign, with both keys."""
        words = statement(community, old.public, new.public)
        return cls(old.public, new.public, old.sign(words), new.sign(words))

    def encode(self) -> bytes:
        """Give the canonical form: ``[old, new, signature, countersignature]``."""
        return canonical.encode([self.old.encode(), self.new.encode(), self.signature, self.countersignature])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` gave; nothing in it is to be believed yet.

        Raises:
            MalformedMessageError: it is no succession.
        """
        match canonical.decode(data, max_bytes=MAX_BYTES, max_items=8):
            case [bytes(old), bytes(new), bytes(signature), bytes(countersignature)]:
                return cls(PublicIdentity.decode(old), PublicIdentity.decode(new), signature, countersignature)
            case _:
                raise MalformedMessageError("A succession of keys could not be read.", advice="It was dropped.")

    def check(self, community: bytes) -> None:
        """Look that both keys signed, for this community and in one role.

        Raises:
            BadSignatureError: one did not.
        """
        words = statement(community, self.old, self.new)
        if not (
            self.old.role == self.new.role
            and self.old.has_signed(self.signature, words)
            and self.new.has_signed(self.countersignature, words)
        ):
            raise BadSignatureError(
                f"{self.new.short_id} claims to come after {self.old.short_id}, and not both have signed that",
                advice="It was dropped.",
            )


def statement(community: bytes, old: PublicIdentity, new: PublicIdentity) -> bytes:
    """What both sign."""
    return canonical.encode(["bramble/succession/1", community, old.encode(), new.encode()])


def leads_to(pinned: str, target: PublicIdentity, links: Iterable[bytes], community: bytes) -> bool:
    """Say whether successions lead from the keys whose fingerprint was pinned to others.

    Args:
        pinned: 52 characters of base32.
        target: the keys that are claimed to have come after them.
        links: encoded successions, oldest first.
        community: 16 bytes.
    """
    at = pinned
    for data in links:
        try:
            link = Succession.decode(data)
            if link.old.fingerprint() == at:
                link.check(community)
                at = link.new.fingerprint()
        except ProtocolError:
            return False
    return at == target.fingerprint()
