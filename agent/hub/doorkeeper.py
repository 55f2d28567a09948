"""The doorkeeper looks at every message before anything is done for it. It needs neither the database nor the disk.

What it lets through was signed by a member (or asks to become one), is of this community, of the kind that its topic
says, not from the future, was never let through before, and is not more than its sender may send. The order is that of
cost: what a flood is made of is refused before a signature is checked, and nothing is held against a device before its
signature was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.crypto.envelope import Envelope, Unverified, parse, verify
from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.errors import (
    FutureMessageError,
    RateLimitedError,
    ReplayedMessageError,
    UnknownSenderError,
    WrongCommunityError,
    WrongKindError,
)
from agent.hub.limits import Allowances
from agent.hub.register import Former
from agent.transport.link import Message
from agent.transport.topics import ParsedTopic, Topics

FUTURE_SECONDS = 600.0
"""How far a device's clock may be ahead of the hub's. A device never says a later time than it last heard from the hub
(:mod:`agent.federation.hub_clock`), so this is for what happens between two of the hub's words, and not for bad clocks.
The past is never refused: a machine without a battery for its clock begins in 1970, and counters tell old from new."""

HEARD = frozenset({"offer", "chunk", "want", "verdict", "leave", "succeed", "renew"})
"""Kinds of messages that a hub knows."""

_DROPPED = "It was dropped."


@dataclass(frozen=True, slots=True)
class Request:
    """A message of somebody who wants to join: its signature is checked with the keys that are sealed in it."""

    unverified: Unverified
    invite: str


class Doorkeeper:
    """Lets messages in, or says why not.

    Args:
        topics: of the community.
        known: the members' keys.
        windows: of the counters that each of them has used; the new ones are remembered here.
        allowances: what each may send.
        clock: Unix time in seconds.
        outside: gives the message of a device that was asked about and is no member, if it is one's.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        known: dict[str, PublicIdentity],
        windows: dict[str, ReplayWindow],
        allowances: Allowances,
        clock: Callable[[], float],
        outside: Callable[[Unverified], Former | None] = lambda _unverified: None,
    ) -> None:
        self._topics = topics
        self._community = bytes.fromhex(topics.community)
        self._known = known
        self._windows = windows
        self._allowances = allowances
        self._clock = clock
        self._outside = outside

    def look(self, message: Message) -> Envelope | Request | Former:
        """Give what a message holds.

        Raises:
            ProtocolError: it is refused; its code says why.
        """
        topic = self._topics.parse(message.topic)
        if topic.room == "from" and self._allowances.is_spent(str(topic.device), len(message.payload)):
            raise _too_much(str(topic.device))
        unverified = parse(message.payload)
        if unverified.community != self._community:
            raise WrongCommunityError("an envelope of another community came", advice=_DROPPED)
        if topic.device != unverified.sender:
            raise UnknownSenderError(
                f"{unverified.sender[:10]} wrote on the topic of {str(topic.device)[:10]}", advice=_DROPPED
            )
        if topic.room == "join" and topic.invite is not None and unverified.kind != "renew":
            return self._newcomer(unverified, topic.invite)
        return self._member(unverified, topic, len(message.payload))

    def _newcomer(self, unverified: Unverified, invite: str) -> Request:
        if unverified.kind != "join":
            raise _wrong_kind(unverified.kind, "join")
        if not self._allowances.join(invite):
            raise RateLimitedError(
                f"too many requests to join come with invite {invite[:16]}", advice="Newcomers ask again by themselves."
            )
        return Request(unverified, invite)

    def _member(self, unverified: Unverified, topic: ParsedTopic, size: int) -> Envelope | Former:
        device = unverified.sender
        if topic.room == "join" and not self._allowances.join(device):  # by the newcomers' door anybody may write
            raise _too_much(device)
        former = self._outside(unverified)
        if former is not None:
            if not self._allowances.take(device, unverified.kind, size):
                raise _too_much(device)
            return former
        public, window = self._known.get(device), self._windows.get(device)
        if public is None or window is None:
            raise UnknownSenderError(
                f"{device[:10]} is not a member of this community", advice="It must join with an invite first."
            )
        if window.check(unverified.counter) != "new":
            raise ReplayedMessageError(
                f"message {unverified.counter} of {device[:10]} was seen before, or is too old", advice=_DROPPED
            )
        envelope = verify(unverified, public)
        if not self._allowances.take(device, envelope.kind, size):
            raise _too_much(device)
        wanted = "renew" if topic.room == "join" else topic.kind  # whose certificate is over comes by the other door
        if topic.room not in {"from", "join"} or envelope.kind != wanted or envelope.kind not in HEARD:
            raise _wrong_kind(envelope.kind, topic.kind or topic.room)
        ahead = envelope.time / 1000 - self._clock()
        if ahead > FUTURE_SECONDS:
            raise FutureMessageError(
                f"a message of {device[:10]} says that it was sent {ahead:,.0f} s from now",
                advice="It was dropped. One of the two machines has a wrong clock.",
            )
        window.accept(envelope.counter)
        return envelope


def _too_much(device: str) -> RateLimitedError:
    return RateLimitedError(
        f"{device[:10]} sends more than any device needs to", advice="What is above its allowance is dropped."
    )


def _wrong_kind(kind: str, wanted: str) -> WrongKindError:
    return WrongKindError(f"a {kind} came on the topic for {wanted}, or is unknown here", advice=_DROPPED)
