"""The real link: MQTT 5 or 3.1.1, over TCP, TLS or WebSockets.

With MQTT 3.1.1 a broker has no way to refuse a publish: mosquitto acknowledges what its access rules forbid, and drops
it. Only the receiver's receipt says that a message arrived. A broker that lost its sessions (mosquitto without
persistence, after a restart, or once a session expired) has also lost what waited in them; subscriptions are made again
after every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from agent.errors import BrokerRefusedError, BrokerUnreachableError, NetworkError
from agent.transport.address import BrokerAddress, parse_brokers
from agent.transport.backoff import Backoff
from agent.transport.link import MAX_INFLIGHT, LinkState, Message, Presence, check_size
from agent.transport.mending import Mender
from agent.transport.paho_client import PahoClient, Terms, to_the_end
from agent.transport.silence import Silence
from agent.transport.tls import Tls

Version: TypeAlias = Literal["auto", 5, 4]
"""MQTT 5, MQTT 3.1.1 (4 on the wire), or 5 where the broker speaks it."""

MAX_QUEUED = 512
"""Messages that wait for the consumer. What comes beyond is not acknowledged, and asked for again later."""

MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""Likewise, their payloads."""

SESSION_SECONDS = 86_400
"""How long the broker keeps what came for an absent client."""

BACKOFF_SECONDS = (1.0, 60.0)
"""The bound of the waiting time between two attempts: at first, and at most."""

ANSWER_SECONDS = 60.0
"""How long the broker may leave a publish without an acknowledgement before the connection is made anew."""

_FAREWELL_SECONDS = 2.0
_FILTERS_A_PACKET = 8


@dataclass(slots=True, kw_only=True, eq=False)
class _Publish:
    """A message on its way to the broker."""

    topic: str
    payload: bytes
    retain: bool
    answer: asyncio.Future[str | None]
    """Why it was refused; None where it was taken."""


class MqttLink:
    """A ``Link`` over MQTT.

    Args:
        url: ``mqtt[s]://[user[:password]@]host[:port]`` or ``ws[s]://…/path``; several, separated by commas, are tried
            in order.
        client_id: what the broker keeps the session under; one live link an id.
        username: for each broker whose URL names no user.
        password: for each broker whose URL names no user.
        presence: called in the event loop before the first connection and after each break; what to say about being
            there.
        protocol: ``"auto"``, ``5`` or ``4`` (3.1.1).
        session_seconds: how long the broker keeps the session; 0 for none.
        max_inflight: publishes in flight at most; less where the broker asks for less.
        keepalive: seconds of silence after which the connection is tested.
        allow_plaintext: whether ``mqtt://`` and ``ws://`` may lead to another machine.
        tls: whom to trust and which certificate to show, asked before each connection; the system's and none, if not
            given.
        backoff: bounds of the waiting time between attempts, seconds.
        answer_seconds: how long the oldest publish may wait for its acknowledgement while the connection stands.
        patient: whether to wait for a broker that cannot be reached at first.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        username: str | None = None,
        password: str | None = None,
        presence: Callable[[], Presence] | None = None,
        protocol: Version = "auto",
        session_seconds: int = SESSION_SECONDS,
        max_inflight: int = MAX_INFLIGHT,
        keepalive: int = 30,
        allow_plaintext: bool = False,
        tls: Callable[[], Tls] = Tls,
        backoff: tuple[float, float] = BACKOFF_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        patient: bool = False,
    ) -> None:
        self._brokers = [
            address if address.username is not None else replace(address, username=username, password=password)
            for address in parse_brokers(url)
        ]
        self._allow_plaintext = allow_plaintext
        self._mender = Mender(
            brokers=self._brokers,
            versions=[5, 4] if protocol == "auto" else [protocol],
            terms=Terms(
                client_id=client_id,
                session_seconds=session_seconds,
                max_inflight=max_inflight,
                keepalive=keepalive,
                tls=tls,
            ),
            presence=presence,
            owner=self,
            backoff=Backoff(first=backoff[0], most=backoff[1]),
            patient=patient,
        )
        self._client: PahoClient | None = None  # while it is connected
        self._connected = asyncio.Event()
        self._closed = False
        self._failure: Exception | None = None
        self._state = LinkState(connected=False, reason="")
        self._callbacks: list[Callable[[LinkState], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

        self._waiting: deque[_Publish] = deque()
        self._inflight: dict[int, _Publish] = {}
        self._answer_seconds = answer_seconds
        self._silence = Silence(patience=answer_seconds)  # of this connection
        self._subscribing: dict[int, asyncio.Future[bool | None]] = {}
        self._filters: dict[str, None] = {}

        self._incoming: deque[Message] = deque()
        self._incoming_bytes = 0
        self._arrived = asyncio.Event()
        self._overflowed = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for address in self._brokers:
            address.require_privacy(allow_plaintext=self._allow_plaintext)
        await self._mender.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        presence = None if self._client is None else self._client.presence
        if self.connected and presence is not None and self._failure is None:
            with contextlib.suppress(NetworkError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self.publish(presence.topic, presence.will, retain=True)
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await to_the_end(asyncio.create_task(self._end()))

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._client is not None and self._client.up

    @property
    def address(self) -> BrokerAddress:
        """Where this link goes: the broker in use, or else the first to be tried."""
        return self._brokers[0] if self._client is None else self._client.address

    def on_state(self, callback: Callable[[LinkState], None]) -> None:
        """Have ``callback`` called in the event loop whenever the link breaks or is back; see ``Link``."""
        self._callbacks.append(callback)

    async def wait_connected(self, within: float) -> None:
        """Wait until the broker can be reached; see ``Link``."""
        try:
            async with asyncio.timeout(within):
                await self._wait_up()
        except TimeoutError:
            raise BrokerUnreachableError(
                f"The broker {self.address.shown} cannot be reached: no answer within {within:g} seconds.",
                advice="Check that the broker runs, that the address is right, and that no firewall is between.",
            ) from None

    async def _end(self) -> None:
        await self._mender.end()
        self._client = None
        self._release(self._ended_error())

    def _release(self, error: Exception) -> None:
        """Have everybody who waits hear that there will be no connection any more."""
        published = [publish.answer for publish in (*self._inflight.values(), *self._waiting)]
        waiting: list[asyncio.Future[Any]] = [*published, *self._subscribing.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()
        self._inflight.clear()
        self._subscribing.clear()
        self._connected.set()
        self._arrived.set()

    async def _wait_up(self) -> PahoClient:
        while not (self._closed or self._failure):
            await self._connected.wait()
            if self._client is not None and self._client.up:
                return self._client
            await asyncio.sleep(0)  # it broke, and the news is on its way
        raise self._ended_error()

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker; see ``Link``. Those that wait their turn wait in their callers' hands."""
        check_size(topic, payload)
        if self._closed or self._failure:
            raise self._ended_error()
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        publish = _Publish(topic=topic, payload=payload, retain=retain, answer=answer)
        self._waiting.append(publish)
        self._pump()
        try:
            refusal = await answer
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # it may be in flight, or through
                self._waiting.remove(publish)
            raise
        if refusal is not None:
            raise BrokerRefusedError(
                f"The broker {self.address.shown} refused a message for {topic}: {refusal}.",
                advice="Check this user's rights and limits on the broker.",
            )

    def _pump(self) -> None:
        """Hand over what waits, as far as there may be more in flight."""
        client = self._client
        while client is not None and self._waiting and len(self._inflight) < client.limit:
            publish = self._waiting[0]
            if not publish.answer.done():  # or else its caller was cancelled
                mid = client.publish(publish.topic, publish.payload, retain=publish.retain)
                if mid is None:
                    return  # it broke, and the news is on its way
                self._inflight[mid] = publish
                self._silence.sent(mid, time.monotonic())
            self._waiting.popleft()

    # -- subscribing --------------------------------------------------------------------------------------------------

    async def subscribe(self, topic_filter: str) -> None:
        """Ask for messages; see ``Link``."""
        granted: bool | None = None
        while granted is None:
            granted = await self._ask_for(await self._wait_up(), [topic_filter])
        if not granted:
            raise BrokerRefusedError(
                f"The broker {self.address.shown} does not let this user read {topic_filter}.",
                advice="Check this user's rights on the broker.",
            )
        self._filters[topic_filter] = None

    async def unsubscribe(self, topic_filter: str) -> None:
        """Ask for no more of them; what is under way may still come."""
        self._filters.pop(topic_filter, None)
        if self._client is not None:
            self._client.unsubscribe(topic_filter)

    async def _ask_for(self, client: PahoClient, filters: list[str]) -> bool | None:
        """Say whether all were granted; None when the connection broke first."""
        mid = client.subscribe(filters)
        if mid is None:
            return None
        answer: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._subscribing[mid] = answer
        self._silence.sent(mid, time.monotonic())
        return await answer

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def messages(self) -> AsyncIterator[Message]:
        """Give messages as they come, until the link closes; see ``Link``."""
        while True:
            if self._incoming:
                message = self._incoming.popleft()
                self._incoming_bytes -= len(message.payload)
                yield message
                continue
            if self._failure is not None:
                raise self._failure
            if self._closed:
                return
            if self._overflowed and self._client is not None:  # have the broker send again what did not fit
                self._overflowed = False
                self._client.cut()
            self._arrived.clear()
            await self._arrived.wait()

    # -- events of the mender and the client --------------------------------------------------------------------------

    def is_up(self, client: PahoClient) -> None:
        """A broker took us in."""
        self._client = client
        self._connected.set()
        self._silence = Silence(patience=self._answer_seconds)
        self._pump()
        self._keep(self._greet(client))
        self._keep(self._end_silence(client))
        shown = client.address.shown
        exposed = " without encryption: whoever is on the way can read along" if client.address.exposed else ""
        self._tell(LinkState(connected=True, reason=f"connected to {shown}{exposed}", broker=shown))

    def is_down(self, state: LinkState) -> None:
        """The connection broke, or there is still none. What was not acknowledged is sent first when it is back."""
        self._connected.clear()
        self._client = None
        for task in self._tasks:
            task.cancel()
        self._waiting.extendleft(reversed(self._inflight.values()))
        self._inflight.clear()
        for answer in self._subscribing.values():
            if not answer.done():
                answer.set_result(None)
        self._subscribing.clear()
        if state != self._state:  # nobody wants to read each attempt
            self._tell(state)

    def has_failed(self, error: Exception) -> None:
        """There will be no connection."""
        self._fail(error)
        self._tell(LinkState(connected=False, reason=str(error)))

    def is_published(self, mid: int, refusal: str | None) -> None:
        """A publish was acknowledged, or refused."""
        self._silence.acknowledged(mid, time.monotonic())
        publish = self._inflight.pop(mid, None)
        if publish is None:
            return
        if not publish.answer.done():
            publish.answer.set_result(refusal)
        self._pump()

    def is_subscribed(self, mid: int, *, granted: bool) -> None:
        """A subscription was answered."""
        self._silence.acknowledged(mid, time.monotonic())
        answer = self._subscribing.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(granted)

    def has_arrived(self, message: Message) -> None:
        """A message came."""
        size = self._incoming_bytes + len(message.payload)
        if len(self._incoming) >= MAX_QUEUED or (self._incoming and size > MAX_QUEUED_BYTES):
            self._overflowed = True
            return
        self._incoming_bytes = size
        self._incoming.append(message)
        self._arrived.set()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside everything else while the connection stands."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    async def _end_silence(self, client: PahoClient) -> None:
        """Make the connection anew where the broker acknowledges nothing over it."""
        while (left := self._silence.left(time.monotonic())) != 0:  # noqa: ASYNC110 (it is time that is waited for)
            await asyncio.sleep(left or self._answer_seconds / 4)
        client.cut()

    async def _greet(self, client: PahoClient) -> None:
        """After each connection: say that we are there, and ask again for what we asked for before."""
        filters, presence = list(self._filters), client.presence
        with contextlib.suppress(NetworkError):
            if presence is not None:
                try:
                    await self.publish(presence.topic, presence.birth, retain=True)
                except BrokerRefusedError as error:  # which is no reason to hear nothing
                    self._tell(LinkState(connected=True, reason=str(error), broker=client.address.shown))
            for start in range(0, len(filters), _FILTERS_A_PACKET):
                if await self._ask_for(client, filters[start : start + _FILTERS_A_PACKET]) is False:
                    reason = "the broker took back the right to read some topics"
                    self._tell(LinkState(connected=True, reason=reason, broker=client.address.shown))

    def _tell(self, state: LinkState) -> None:
        self._state = state
        for callback in tuple(self._callbacks):
            try:
                callback(state)
            except Exception as error:  # noqa: BLE001 (whoever uses the link hears of it, and not who mends it)
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Have everybody who uses the link, now or later, get the first error that ended it."""
        self._failure = self._failure or error
        self._release(self._failure)

    def _ended_error(self) -> Exception:
        return self._failure or BrokerUnreachableError(
            f"The link to {self.address.shown} was closed before the broker had answered.",
            advice="What was sent is not delivered for certain; whoever keeps it in an outbox offers it again.",
        )
