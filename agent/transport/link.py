"""A link: how messages get to the broker and back, whatever carries them.

The federation and the hub know only this. ``agent.transport.mqtt`` is the real one, ``agent.transport.memory`` the one
for tests; both pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from agent.errors import OversizedMessageError

MAX_PACKET_BYTES = 96 * 1024
"""The largest MQTT packet, header and topic included. AWS IoT stops at 128 KB, others later."""

PACKET_OVERHEAD = 16
"""What MQTT adds to topic and payload, at most."""

MAX_INFLIGHT = 10
"""Publishes that wait for the broker's acknowledgement at the same time, at most."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the broker. Until it is acknowledged, the broker keeps it and sends it again after a break."""

    topic: str
    payload: bytes
    retained: bool
    """Whether it was kept by the broker from before the subscription."""
    _acknowledge: Callable[[], None] = field(repr=False, compare=False)

    def ack(self) -> None:
        """Let go of it: it was handled, or is on disk. Safe to call twice, and after the link has closed."""
        self._acknowledge()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What ``on_state`` is told."""

    connected: bool
    reason: str
    """Why, in a few words for a person."""
    broker: str = ""
    """Which broker it is about, without credentials; empty where none is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a link says about being there, both retained on one topic.

    ``birth`` is published after each connection; ``will`` by the broker when the link breaks, and by the link itself
    when it closes in order. A session number inside both pairs them.
    """

    topic: str
    birth: bytes
    will: bytes


class Link(Protocol):
    """A connection to one broker, of one or several to choose from, that mends itself.

    Use it as an async context manager; entering it connects. All methods belong to the event loop that entered it.

    A *patient* link, which is for services, may be entered while no broker can be reached: it goes on trying, says so
    through ``on_state``, and whatever needs the broker waits. Where a broker then refuses it for good, before it was
    ever connected, everything that waits raises ``BrokerRefusedError``. Once a link was connected, no broker ends it.

    A link that nobody mends any more never looks like one that is just slow: whatever ends it, an error of a callback
    included, is raised by everything that waits for it or is asked of it from then on.
    """

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnreachableError: nobody answers there; not from a patient link.
            BrokerRefusedError: the broker does not want this client.
        """
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. Messages not acknowledged yet stay with the broker."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        ...

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker (QoS 1); returns when the broker has taken it.

        Over a break it waits, and sends again once the link is back: it neither gives up nor forgets. It may be
        cancelled, after which the message may or may not arrive. The broker's word is not the receiver's: a broker may
        take a message and, for lack of rights, drop it. Whoever must know asks the receiver for a receipt.

        Raises:
            OversizedMessageError: the packet would be larger than 96 KiB.
            BrokerRefusedError: the broker says that it will not take it (MQTT 5 only), or the link closed meanwhile.
        """
        ...

    async def subscribe(self, topic_filter: str) -> None:
        """Ask for messages; kept over every reconnection. Returns when the broker has agreed.

        Raises:
            BrokerRefusedError: the broker does not allow it.
        """
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Ask for no more of them."""
        ...

    def messages(self) -> AsyncIterator[Message]:
        """Give messages as they come, until the link closes. For one consumer.

        What waits for the consumer is bounded; what comes beyond is left with the broker, the newest first, which
        sends it again once there is room.
        """
        ...

    def on_state(self, callback: Callable[[LinkState], None]) -> None:
        """Have ``callback`` called in the event loop whenever the link breaks or is back.

        Registered before the link is entered, it also hears of the first connection, or why there is none yet. What
        it raises ends the link.
        """
        ...

    async def wait_connected(self, within: float) -> None:
        """Wait until the broker can be reached.

        Raises:
            BrokerUnreachableError: not within ``within`` seconds.
        """
        ...


def check_size(topic: str, payload: bytes) -> None:
    """Refuse what does not fit one packet.

    Raises:
        OversizedMessageError: topic, payload and MQTT's header exceed 96 KiB.
    """
    size = len(topic.encode()) + len(payload) + PACKET_OVERHEAD
    if size > MAX_PACKET_BYTES:
        raise OversizedMessageError(
            f"A message for {topic} makes a packet of {size} bytes; at most {MAX_PACKET_BYTES} fit.",
            advice="Send large things as a transfer of chunks.",
        )
