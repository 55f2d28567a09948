"""The heart of a broker: who is there, who wants what, and what still has to be handed over. No sockets, no clock.

The embedded broker and the in-memory one both run on it, so both keep the same promises:

- a message for a session that lasts is kept until that session has acknowledged it, over any number of connections;
- nothing reaches a user, by whatever road (subscription, retained message, kept session), that the rules forbid;
- everything is bounded. When a session's queue is full, what comes next for it is dropped and counted; when there is no
  room for another retained message or session, it is refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.transport.access import Action
from agent.transport.topics import is_filter, is_topic, matches

Allowed: TypeAlias = Callable[[str, Action, str], bool]
"""May this user do this with this topic or filter? See ``agent.transport.access``."""

Observer: TypeAlias = Callable[[str, str, bytes], None]
"""Told of every message taken: user, topic, payload. For tests and for counting."""

_LAST_PACKET_ID = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the broker keeps for others."""

    inflight: int = 20
    """Messages handed to one client and not acknowledged by it."""
    queued_messages: int = 10_000
    queued_bytes: int = 64 * 1024 * 1024
    """For one session, in flight included."""
    retained_messages: int = 10_000
    retained_bytes: int = 256 * 1024 * 1024
    sessions: int = 10_000
    filters: int = 64
    """For one session."""
    session_seconds: float = 86_400.0
    """How long an absent session is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What is published for a client whose connection breaks."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One message on its way to one client."""

    packet_id: int | None
    """None where no acknowledgement is asked for (QoS 0)."""
    topic: str
    payload: bytes
    retained: bool
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attachment:
    """One live connection of one client."""

    session: Session
    resumed: bool
    """Whether the broker had kept the session from before."""
    deliver: Callable[[Delivery], None]
    close: Callable[[], None]
    """Called when somebody else takes the session over."""
    will: Will | None


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """What is kept of a client between connections."""

    user: str
    client_id: str
    lasting: bool
    filters: dict[str, int] = field(default_factory=dict)
    """Each with its QoS."""
    waiting: deque[Delivery] = field(default_factory=deque)
    inflight: OrderedDict[int, Delivery] = field(default_factory=OrderedDict)
    size: int = 0
    """Bytes of payload, waiting and in flight."""
    last_packet_id: int = 0
    attachment: Attachment | None = None
    left_at: float = 0.0

    def free_packet_id(self) -> int:
        """Give an id that is not in flight."""
        while True:
            self.last_packet_id = self.last_packet_id % _LAST_PACKET_ID + 1
            if self.last_packet_id not in self.inflight:
                return self.last_packet_id


class Exchange:
    """Sessions, subscriptions, retained messages and wills of one broker."""

    def __init__(
        self,
        *,
        allowed: Allowed,
        now: Callable[[], float],
        limits: Limits | None = None,
        observe: Observer | None = None,
    ) -> None:
        self._allowed = allowed
        self._now = now
        self._limits = limits or Limits()
        self._observe = observe
        self._sessions: dict[tuple[str, str], Session] = {}
        self._retained: dict[str, bytes] = {}
        self._retained_bytes = 0
        self.dropped = 0
        """Messages that did not fit into a session's queue."""
        self.forbidden = 0
        """Publishes, subscriptions and wills that the rules did not allow."""

    # -- coming and going ---------------------------------------------------------------------------------------------

    def attach(
        self,
        *,
        user: str,
        client_id: str,
        lasting: bool,
        will: Will | None,
        deliver: Callable[[Delivery], None],
        close: Callable[[], None],
    ) -> Attachment | None:
        """Let an authenticated client in; None when there is no room. Call ``resume`` once it was told.

        A session belongs to its user: another user with the same client id gets another session.
        """
        self._forget_the_absent()
        key = (user, client_id)
        session = self._sessions.get(key)
        if session is not None and session.attachment is not None:
            old = session.attachment
            self.detach(old, orderly=False)
            old.close()
            session = self._sessions.get(key)
        resumed = lasting and session is not None
        if session is None or not resumed:
            if session is None and len(self._sessions) >= self._limits.sessions:
                return None
            session = Session(user=user, client_id=client_id, lasting=lasting)
            self._sessions[key] = session
        attachment = Attachment(session=session, resumed=resumed, deliver=deliver, close=close, will=will)
        session.attachment = attachment
        return attachment

    def resume(self, attachment: Attachment) -> None:
        """Hand over what was in flight when the last connection ended, and then what has waited since."""
        session = attachment.session
        for delivery in session.inflight.values():
            delivery.again = True
            attachment.deliver(delivery)
        self._pump(session)

    def detach(self, attachment: Attachment, *, orderly: bool) -> None:
        """A connection ended. Without farewell, its will is published."""
        session = attachment.session
        if session.attachment is not attachment:
            return  # somebody else took over
        session.attachment = None
        session.left_at = self._now()
        if not session.lasting:
            self._sessions.pop((session.user, session.client_id), None)
        if attachment.will is not None and not orderly:
            will = attachment.will
            self.publish(session.user, will.topic, will.payload, retain=will.retain)

    # -- messages -----------------------------------------------------------------------------------------------------

    def publish(self, user: str, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Take a message from a user and hand it on; False if the rules forbid it."""
        if not is_topic(topic) or topic.startswith("$") or not self._allowed(user, "publish", topic):
            self.forbidden += 1
            return False
        if self._observe is not None:
            self._observe(user, topic, payload)
        if retain:
            self._retain(topic, payload)
        for session in tuple(self._sessions.values()):
            wanted = [qos for topic_filter, qos in session.filters.items() if matches(topic_filter, topic)]
            if wanted and self._allowed(session.user, "receive", topic):
                self._hand(session, topic, payload, qos=max(wanted), retained=False)
        return True

    def subscribe(self, attachment: Attachment, topic_filter: str, qos: int) -> int | None:
        """Ask for messages; gives the QoS granted (1 at most), or None. Then call ``send_retained``."""
        session = attachment.session
        fits = topic_filter in session.filters or len(session.filters) < self._limits.filters
        if not (fits and is_filter(topic_filter) and self._allowed(session.user, "subscribe", topic_filter)):
            self.forbidden += 1
            return None
        session.filters[topic_filter] = granted = min(qos, 1)
        return granted

    def unsubscribe(self, attachment: Attachment, topic_filter: str) -> None:
        """Ask for no more of them."""
        attachment.session.filters.pop(topic_filter, None)

    def send_retained(self, attachment: Attachment, topic_filter: str) -> None:
        """Hand over the retained messages that a fresh subscription reaches and its user may receive."""
        session = attachment.session
        qos = session.filters.get(topic_filter)
        if qos is None:
            return
        for topic, payload in tuple(self._retained.items()):
            if matches(topic_filter, topic) and self._allowed(session.user, "receive", topic):
                self._hand(session, topic, payload, qos=qos, retained=True)

    def acknowledge(self, attachment: Attachment, packet_id: int) -> None:
        """The client has taken this message."""
        session = attachment.session
        if session.attachment is not attachment:
            return
        delivery = session.inflight.pop(packet_id, None)
        if delivery is not None:
            session.size -= len(delivery.payload)
            self._pump(session)

    # -- within -------------------------------------------------------------------------------------------------------

    def _hand(self, session: Session, topic: str, payload: bytes, *, qos: int, retained: bool) -> None:
        delivery = Delivery(packet_id=None, topic=topic, payload=payload, retained=retained)
        if qos == 0:
            if session.attachment is not None:
                session.attachment.deliver(delivery)
            return
        limits = self._limits
        if (
            len(session.waiting) + len(session.inflight) >= limits.queued_messages
            or session.size + len(payload) > limits.queued_bytes
        ):
            self.dropped += 1
            return
        session.waiting.append(delivery)
        session.size += len(payload)
        self._pump(session)

    def _pump(self, session: Session) -> None:
        attachment = session.attachment
        while attachment is not None and session.waiting and len(session.inflight) < self._limits.inflight:
            delivery = session.waiting.popleft()
            delivery.packet_id = packet_id = session.free_packet_id()
            session.inflight[packet_id] = delivery
            attachment.deliver(delivery)

    def _retain(self, topic: str, payload: bytes) -> None:
        before = self._retained.pop(topic, b"")
        self._retained_bytes -= len(before)
        if not payload:
            return
        if (
            len(self._retained) >= self._limits.retained_messages
            or self._retained_bytes + len(payload) > self._limits.retained_bytes
        ):
            self.dropped += 1
            return
        self._retained[topic] = payload
        self._retained_bytes += len(payload)

    def _forget_the_absent(self) -> None:
        before = self._now() - self._limits.session_seconds
        for key, session in tuple(self._sessions.items()):
            if session.attachment is None and session.left_at < before:
                del self._sessions[key]
