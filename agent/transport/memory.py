"""A link without a network, for tests and simulations: the broker's heart, called directly.

It keeps the promises of the real one: what is not acknowledged comes again, wills are published when a link breaks,
access rules hold, and publishing over an outage waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from agent.errors import BrokerRefusedError, BrokerUnreachableError
from agent.transport.backoff import Backoff
from agent.transport.exchange import Allowed, Attachment, Delivery, Exchange, Limits, Observer, Will
from agent.transport.link import LinkState, Message, Presence, check_size


class MemoryBroker:
    """A broker in this process. It can be taken down, brought back, and made to forget.

    Args:
        allowed: the access rules; everything, if not given.
        authenticate: whether a user may come in; everybody, if not given.
        limits: how much is kept for others.
        observe: told of every message that passes.
    """

    def __init__(
        self,
        *,
        allowed: Allowed | None = None,
        authenticate: Callable[[str, str], bool] | None = None,
        limits: Limits | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.exchange = Exchange(
            allowed=allowed or (lambda _user, _action, _topic: True), now=time.monotonic, limits=limits, observe=observe
        )
        self.authenticate = authenticate or (lambda _user, _password: True)
        self._up = True
        self._back = asyncio.Event()
        self._back.set()
        self._attached: set[MemoryLink] = set()

    @property
    def up(self) -> bool:
        """Whether links can reach it."""
        return self._up

    def go_down(self) -> None:
        """Become unreachable. Sessions and retained messages are kept."""
        self._up = False
        self._back.clear()
        for link in tuple(self._attached):
            link.cut()

    def come_back(self) -> None:
        """Be reachable again; links find out by themselves."""
        self._up = True
        self._back.set()

    async def wait_back(self) -> None:
        """Wait until it can be reached."""
        await self._back.wait()

    def note(self, link: MemoryLink, *, attached: bool) -> None:
        """Remember which links are connected. For links."""
        if attached:
            self._attached.add(link)
        else:
            self._attached.discard(link)


class MemoryLink:
    """A ``Link`` to a ``MemoryBroker``.

    Args:
        broker: where it goes.
        client_id: what the session is kept under.
        username: as whom.
        password: with what.
        presence: called before each connection.
        lasting: whether the broker keeps the session over a break.
        patient: whether to wait for a broker that is down at first.
    """

    def __init__(
        self,
        *,
        broker: MemoryBroker,
        client_id: str,
        username: str = "",
        password: str = "",
        presence: Callable[[], Presence] | None = None,
        lasting: bool = True,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._failure: Exception | None = None
        self._backoff = Backoff(first=0.01, most=0.05)
        self._was_connected = False
        self._broker = broker
        self._client_id = client_id
        self._username = username
        self._password = password
        self._make_presence = presence
        self._lasting = lasting
        self._presence: Presence | None = None
        self._attachment: Attachment | None = None
        self._connected = asyncio.Event()
        self._closed = False
        self._incoming: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._filters: dict[str, None] = {}
        self._callbacks: list[Callable[[LinkState], None]] = []
        self._mender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._broker.up:
            self._connect()
        elif self._patient:
            self._tell(LinkState(connected=False, reason="waiting for the broker (in memory: it is down)"))
            self._mender = asyncio.get_running_loop().create_task(self._mend(0.0))
        else:
            raise BrokerUnreachableError("The broker in memory is down.", advice="Bring it back.")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._mender is not None:
            self._mender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._mender
        attachment, self._attachment = self._attachment, None
        self._broker.note(self, attached=False)
        if attachment is not None:
            if self._presence is not None:
                self._broker.exchange.publish(self._username, self._presence.topic, self._presence.will, retain=True)
            self._broker.exchange.detach(attachment, orderly=True)
        self._connected.set()  # whoever waits finds it closed
        self._arrived.set()

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._attachment is not None

    def on_state(self, callback: Callable[[LinkState], None]) -> None:
        """Have ``callback`` called whenever the link breaks or is back."""
        self._callbacks.append(callback)

    async def wait_connected(self, within: float) -> None:
        """Wait until the broker can be reached; see ``Link``."""
        try:
            async with asyncio.timeout(within):
                await self._attached()
        except TimeoutError:
            raise BrokerUnreachableError(
                f"The broker in memory was not back within {within:g} seconds.", advice="Bring it back."
            ) from None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker; see ``Link``."""
        check_size(topic, payload)
        await self._attached()
        self._broker.exchange.publish(self._username, topic, payload, retain=retain)
        await asyncio.sleep(0)

    async def subscribe(self, topic_filter: str) -> None:
        """Ask for messages; see ``Link``."""
        attachment = await self._attached()
        if self._broker.exchange.subscribe(attachment, topic_filter, 1) is None:
            raise BrokerRefusedError(
                f"The broker in memory does not let {self._username} read {topic_filter}.", advice="Check its rights."
            )
        self._filters[topic_filter] = None
        self._broker.exchange.send_retained(attachment, topic_filter)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Ask for no more of them."""
        self._filters.pop(topic_filter, None)
        if self._attachment is not None:
            self._broker.exchange.unsubscribe(self._attachment, topic_filter)

    async def messages(self) -> AsyncIterator[Message]:
        """Give messages as they come, until the link closes; see ``Link``."""
        while True:
            if self._incoming:
                yield self._incoming.popleft()
            elif self._failure is not None:
                raise self._failure
            elif self._closed:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def cut(self) -> None:
        """Break the connection, as a network does. The link mends itself."""
        attachment, self._attachment = self._attachment, None
        if attachment is None:
            return
        self._broker.exchange.detach(attachment, orderly=False)
        self._lost()

    # -- within -------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self._broker.authenticate(self._username, self._password):
            raise BrokerRefusedError(
                "The broker in memory refused the connection: user name or password are wrong.",
                advice="Check the credentials.",
            )
        self._presence = None if self._make_presence is None else self._make_presence()
        will = None
        if self._presence is not None:
            will = Will(topic=self._presence.topic, payload=self._presence.will, retain=True)
        attachment = self._broker.exchange.attach(
            user=self._username,
            client_id=self._client_id,
            lasting=self._lasting,
            will=will,
            deliver=self._deliver,
            close=self._taken_over,
        )
        if attachment is None:
            raise BrokerRefusedError(
                "The broker in memory has no room for another session.", advice="Use less of them."
            )
        self._attachment = attachment
        self._broker.note(self, attached=True)
        self._broker.exchange.resume(attachment)
        if self._presence is not None:
            self._broker.exchange.publish(self._username, self._presence.topic, self._presence.birth, retain=True)
        for topic_filter in self._filters:
            if self._broker.exchange.subscribe(attachment, topic_filter, 1) is not None:
                self._broker.exchange.send_retained(attachment, topic_filter)
        self._connected.set()
        self._was_connected = True
        self._tell(LinkState(connected=True, reason="connected to the broker in memory", broker="memory"))

    def _deliver(self, delivery: Delivery) -> None:
        attachment = self._attachment
        packet_id = delivery.packet_id

        def acknowledge() -> None:
            if attachment is not None and attachment is self._attachment and packet_id is not None:
                self._broker.exchange.acknowledge(attachment, packet_id)

        self._incoming.append(
            Message(
                topic=delivery.topic, payload=delivery.payload, retained=delivery.retained, _acknowledge=acknowledge
            )
        )
        self._arrived.set()

    def _taken_over(self) -> None:
        self._attachment = None
        self._backoff.broke(after=0.0, taken_over=True)
        self._lost("another link connected with this client id", wait=self._backoff.wait())

    def _lost(self, reason: str = "the connection broke", *, wait: float = 0.0) -> None:
        self._connected.clear()
        self._broker.note(self, attached=False)
        self._tell(LinkState(connected=False, reason=reason, broker="memory"))
        if not self._closed and (self._mender is None or self._mender.done()):
            self._mender = asyncio.get_running_loop().create_task(self._mend(wait))

    async def _mend(self, wait: float) -> None:
        await asyncio.sleep(wait)
        while not self._closed:
            await self._broker.wait_back()
            try:
                self._connect()
            except BrokerRefusedError as error:
                if not self._was_connected:
                    self._fail(error)
                    self._tell(LinkState(connected=False, reason=str(error)))
                    return
                await asyncio.sleep(0.01)
            else:
                return

    async def _attached(self) -> Attachment:
        while not self._closed:
            if self._failure is not None:
                raise self._failure
            if self._attachment is not None:
                return self._attachment
            await self._connected.wait()
            await asyncio.sleep(0)
        raise BrokerUnreachableError("The link to the broker in memory was closed.", advice="Open another one.")

    def _tell(self, state: LinkState) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(state)
            except Exception as error:  # noqa: BLE001 (whoever uses the link hears of it, and not who mends it)
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Have everybody who uses the link, now or later, get the first error that ended it."""
        self._failure = self._failure or error
        self._connected.set()
        self._arrived.set()
