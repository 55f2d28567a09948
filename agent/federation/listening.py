"""What a device believes of what a broker hands it: the hub's own words, for this device, each once.

A broker may hand over anything: junk, another community's messages, another device's, old ones of the hub. So every
message must carry the signature of the hub that the invite pinned, on a topic that fits, and be new. New means:

- for what the hub says to this device alone, a counter that was not used yet. A window a kind is kept (a broker
  promises the order within one topic only), on the disk, so that a restart forgets nothing;
- for what is retained, to be no older than what is known: an announcement by its sequence, a charter by its counter.
  The same one again is what every reconnection brings, and no refusal.

All of them are set by the hub from its clock and from what it remembers, so a hub that was restored from a backup is
heard, and a broker that replays what that hub said before is not.
"""

from __future__ import annotations

from collections import Counter

from agent.crypto.envelope import Envelope, Unverified, parse, verify
from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.errors import (
    CorruptStateError,
    ReplayedMessageError,
    UnknownSenderError,
    WrongCommunityError,
    WrongKindError,
)
from agent.federation.store import DeviceStore
from agent.transport.link import Message
from agent.transport.topics import Topics

TO_ONE = ("offer", "chunk", "receipt", "certificate", "standing")
"""What a hub says to one device."""

TO_ALL = ("round", "charter")
"""What it says to all, retained, of what a member listens to."""

CHUNKS_A_SAVE = 64
"""Chunks after which their window is written down at the latest. Those that come again after a crash are harmless: each
is held against its seal and its place, and only where an adapter was asked for."""

_DROPPED = "It was dropped."


class Listening:
    """Tells the hub's new words from everything else.

    Args:
        store: where the windows are kept.
        topics: of the community.
        device: this device's id.
        hub: the hub's keys, as the invite pinned them.

    Attributes:
        hub: the keys that are believed now; others may come after them (:mod:`agent.federation.succession`).
    """

    def __init__(self, *, store: DeviceStore, topics: Topics, device: str, hub: PublicIdentity) -> None:
        self._store = store
        self._topics = topics
        self._community = bytes.fromhex(topics.community)
        self._device = device
        self.hub = hub
        self._windows = {kind: _window(store.fact(_key(kind))) for kind in TO_ONE}
        self._unsaved: Counter[str] = Counter()  # messages of each kind since its window was written

    def card(self, message: Message) -> Unverified | None:
        """Give the hub's card, if that is what came: it may show other keys than those that are believed now.

        Raises:
            ProtocolError: it cannot be read, or is another community's.
        """
        topic = self._topics.parse(message.topic)
        if (topic.room, topic.kind) != ("hub", "card"):
            return None
        unverified = parse(message.payload)
        if unverified.community != self._community:
            raise WrongCommunityError("a card of another community came", advice=_DROPPED)
        return unverified

    def look(self, message: Message) -> Envelope:
        """Give the hub's words.

        Raises:
            ProtocolError: they are not the hub's, not for this device, or were heard before.
        """
        topic = self._topics.parse(message.topic)
        for_me = topic.room == "to" and topic.device == self._device and topic.kind in TO_ONE
        if not for_me and not (topic.room == "hub" and topic.kind in TO_ALL):
            raise WrongKindError(f"nothing is expected on {message.topic[-80:]}", advice=_DROPPED)
        unverified = parse(message.payload)
        if unverified.community != self._community:
            raise WrongCommunityError("an envelope of another community came", advice=_DROPPED)
        if unverified.sender != self.hub.id:
            raise UnknownSenderError(f"{unverified.sender[:10]} is not the hub of this community", advice=_DROPPED)
        window = self._windows.get(unverified.kind)
        if window is not None and window.check(unverified.counter) != "new":
            raise ReplayedMessageError(
                f"a {unverified.kind} of the hub was seen before, or is too old", advice="It changed nothing."
            )
        envelope = verify(unverified, self.hub)
        if envelope.kind != topic.kind:
            raise WrongKindError(f"a {envelope.kind} came on the topic for {topic.kind}", advice=_DROPPED)
        return envelope

    def handled(self, envelope: Envelope) -> None:
        """Remember that a message was handled, whatever came of it; before the broker is told to let go of it."""
        window = self._windows.get(envelope.kind)
        if window is None:
            return
        window.accept(envelope.counter)
        self._unsaved[envelope.kind] += 1
        if envelope.kind != "chunk" or self._unsaved["chunk"] >= CHUNKS_A_SAVE:
            with self._store.transaction():
                for kind in self._unsaved:
                    self._store.put_fact(_key(kind), self._windows[kind].to_bytes())
            self._unsaved.clear()


def _key(kind: str) -> str:
    return f"heard-{kind}"


def _window(kept: bytes | None) -> ReplayWindow:
    """Read a window; where it was damaged, begin anew: what it keeps out is harmless, and a device must go on."""
    if kept is None:
        return ReplayWindow()
    try:
        return ReplayWindow.from_bytes(kept)
    except CorruptStateError:
        return ReplayWindow()
