"""The real link: MQTT 5 or 3.1.1.

With MQTT 3.1.1 a broker has no way to refuse a publish: mosquitto acknowledges what its access rules forbid, and drops
it. Only the receiver's receipt says that a message arrived. A broker that lost its sessions (mosquitto without
persistence, after a restart) has also lost what waited in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from agent.errors import BrokerRefusedError, BrokerUnreachableError, NetworkError
from agent.transport.address import BrokerAddress
from agent.transport.link import MAX_INFLIGHT, LinkState, Message, Presence, check_size
from agent.transport.paho_client import Credentials, PahoClient
from agent.transport.refusals import NO_ANSWER, UNSUPPORTED_VERSION, advice, explain, reason
from agent.transport.silence import Silence

Version: TypeAlias = Literal["auto", 5, 4]
"""MQTT 5, MQTT 3.1.1 (4 on the wire), or 5 where the broker speaks it."""

MAX_QUEUED = 512
"""Messages that wait for the consumer. What comes beyond is not acknowledged, and asked for again later."""

SESSION_SECONDS = 86_400
"""How long the broker keeps what came for an absent client."""

BACKOFF_SECONDS = (1.0, 60.0)
"""The bound of the waiting time between two attempts: at first, and at most."""

ANSWER_SECONDS = 60.0
"""How long the broker may leave a publish without an acknowledgement before the connection is made anew."""

_CONNECT_SECONDS = 10.0
_FAREWELL_SECONDS = 2.0
_FILTERS_A_PACKET = 8


class MqttLink:
    """A ``Link`` over MQTT.

    Args:
        url: ``mqtt[s]://[user[:password]@]host[:port]``.
        client_id: what the broker keeps the session under; one live link an id.
        username: overrides the one in the URL.
        password: overrides the one in the URL.
        presence: called in the event loop before each connection; what to say about being there.
        protocol: ``"auto"``, ``5`` or ``4`` (3.1.1).
        session_seconds: how long the broker keeps the session; 0 for none.
        max_inflight: publishes in flight at most; less where the broker asks for less.
        keepalive: seconds of silence after which the connection is tested.
        allow_plaintext: whether ``mqtt://`` may lead to another machine.
        ca_file: certificates to trust instead of the system's.
        backoff: bounds of the waiting time between attempts, seconds.
        answer_seconds: how long the oldest publish may wait for its acknowledgement while the connection stands.
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
        ca_file: Path | None = None,
        backoff: tuple[float, float] = BACKOFF_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._address = address = BrokerAddress.parse(url)
        self._credentials = Credentials(
            client_id=client_id,
            username=username if username is not None else address.username,
            password=password if password is not None else address.password,
            session_seconds=session_seconds,
            max_inflight=max_inflight,
            keepalive=keepalive,
            connect_seconds=_CONNECT_SECONDS / 2,
            ca_file=ca_file,
            backoff=backoff,
        )
        self._versions: list[Literal[5, 4]] = [5, 4] if protocol == "auto" else [protocol]
        self._allow_plaintext = allow_plaintext
        self._make_presence = presence
        self._presence: Presence | None = None

        self._client: PahoClient | None = None
        self._answer: asyncio.Future[int] | None = None  # to the first connection: 0 or a reason code
        self._connected = asyncio.Event()
        self._closed = False
        self._callbacks: list[Callable[[LinkState], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

        self._inflight = 0
        self._inflight_limit = max_inflight
        self._slot_waiters: deque[asyncio.Future[None]] = deque()
        self._publishing: dict[int, asyncio.Future[str | None]] = {}
        self._silence = Silence(patience=answer_seconds)
        self._answer_seconds = answer_seconds
        self._subscribing: dict[int, asyncio.Future[bool | None]] = {}
        self._filters: dict[str, None] = {}

        self._incoming: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._overflowed = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._address.require_privacy(allow_plaintext=self._allow_plaintext)
        if self._make_presence is not None:
            self._presence = self._make_presence()
        code = NO_ANSWER
        for version in self._versions:
            code = await self._connect(version)
            if code == 0:
                self._keep(self._end_silence())
                return self
            if code not in (UNSUPPORTED_VERSION, NO_ANSWER):
                break
        raise self._refused(code)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        armed = None if self._client is None else self._client.armed
        if self.connected and armed is not None:
            with contextlib.suppress(NetworkError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self.publish(armed.topic, armed.will, retain=True)
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _finish(asyncio.create_task(self._stop()))

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._client is not None and self._client.up

    @property
    def address(self) -> BrokerAddress:
        """Where this link goes."""
        return self._address

    def on_state(self, callback: Callable[[LinkState], None]) -> None:
        """Have ``callback`` called in the event loop whenever the link breaks or is back."""
        self._callbacks.append(callback)

    async def wait_connected(self, within: float) -> None:
        """Wait until the broker can be reached; see ``Link``."""
        try:
            async with asyncio.timeout(within):
                await self._wait_up()
        except TimeoutError:
            raise self._unreachable(f"no answer within {within:g} seconds") from None

    async def _connect(self, version: Literal[5, 4]) -> int:
        """Connect for the first time with one version of MQTT; gives 0, or why the broker does not want us."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._client = client = PahoClient(
            address=self._address,
            credentials=self._credentials,
            version=version,
            presence=lambda: self._presence,
            events=self,
            loop=loop,
        )
        dialing = asyncio.ensure_future(asyncio.to_thread(client.dial))
        try:
            await asyncio.shield(dialing)
            client.start()
            async with asyncio.timeout(_CONNECT_SECONDS):
                code = await self._answer
        except BaseException as error:
            with contextlib.suppress(Exception):
                await _finish(dialing)
            await _finish(asyncio.create_task(self._stop()))
            if isinstance(error, OSError | ValueError):
                raise self._unreachable(explain(error)) from error
            raise
        if code:
            await _finish(asyncio.create_task(self._stop()))
        return code

    async def _stop(self) -> None:
        client, self._client = self._client, None
        self._connected.clear()
        if client is not None:
            await client.stop()
        waiting: list[asyncio.Future[Any]] = [
            *self._publishing.values(),
            *self._slot_waiters,
            *self._subscribing.values(),
        ]
        for future in waiting:
            if not future.done():
                future.set_exception(self._closed_error())
        self._publishing.clear()
        self._slot_waiters.clear()
        self._subscribing.clear()
        self._inflight = 0
        if self._closed:  # whoever waits finds it closed
            self._connected.set()
            self._arrived.set()

    async def _wait_up(self) -> PahoClient:
        while not self._closed:
            await self._connected.wait()
            if self._client is not None and self._client.up:
                return self._client
            await asyncio.sleep(0)  # it broke, and the news is on its way
        raise self._closed_error()

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to the broker; see ``Link``."""
        check_size(topic, payload)
        await self._take_slot()
        try:
            mid: int | None = None
            while mid is None:
                mid = (await self._wait_up()).publish(topic, payload, retain=retain)
        except BaseException:
            self._free_slot()
            raise
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._publishing[mid] = answer
        self._silence.sent(mid, time.monotonic())
        refusal = await answer  # the slot is freed by the acknowledgement, even if nobody waits for it any more
        if refusal is not None:
            raise BrokerRefusedError(
                f"The broker {self._address.shown} refused a message for {topic}: {refusal}.",
                advice="Check this user's rights and limits on the broker.",
            )

    async def _take_slot(self) -> None:
        if self._closed:
            raise self._closed_error()
        if self._inflight < self._inflight_limit and not self._slot_waiters:
            self._inflight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slot_waiters.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free_slot()
            raise

    def _free_slot(self) -> None:
        self._inflight -= 1
        while self._slot_waiters and self._inflight < self._inflight_limit:
            turn = self._slot_waiters.popleft()
            if not turn.done():
                self._inflight += 1
                turn.set_result(None)

    # -- subscribing --------------------------------------------------------------------------------------------------

    async def subscribe(self, topic_filter: str) -> None:
        """Ask for messages; see ``Link``."""
        granted: bool | None = None
        while granted is None:
            granted = await self._ask_for(await self._wait_up(), [topic_filter])
        if not granted:
            raise BrokerRefusedError(
                f"The broker {self._address.shown} does not let this user read {topic_filter}.",
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
        return await answer

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def messages(self) -> AsyncIterator[Message]:
        """Give messages as they come, until the link closes; see ``Link``."""
        while True:
            if self._incoming:
                yield self._incoming.popleft()
                continue
            if self._closed:
                return
            if self._overflowed and self._client is not None:  # have the broker send again what did not fit
                self._overflowed = False
                self._client.cut()
            self._arrived.clear()
            await self._arrived.wait()

    # -- events of the client -----------------------------------------------------------------------------------------

    def is_up(self, limit: int) -> None:
        """The broker took us in."""
        client = self._client
        if self._closed or client is None:
            return
        self._inflight_limit = limit
        self._connected.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)
        self._silence.connected(time.monotonic())
        self._keep(self._greet(client))
        self._tell(LinkState(connected=True, reason="connected"))

    def is_refused(self, code: int) -> None:
        """The broker did not take us in."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(code)
        elif code != NO_ANSWER:
            self._tell(LinkState(connected=False, reason=f"refused: {reason(code)}"))

    def is_down(self, why: str) -> None:
        """The connection broke."""
        self._connected.clear()
        for answer in self._subscribing.values():
            if not answer.done():
                answer.set_result(None)
        self._subscribing.clear()
        if self._make_presence is not None and not self._closed:
            self._presence = self._make_presence()
        self._tell(LinkState(connected=False, reason=why))

    def is_published(self, mid: int, refusal: str | None) -> None:
        """A publish was acknowledged, or refused."""
        self._silence.acknowledged(mid, time.monotonic())
        answer = self._publishing.pop(mid, None)
        if answer is None:
            return
        self._free_slot()
        if not answer.done():
            answer.set_result(refusal)

    def is_subscribed(self, mid: int, *, granted: bool) -> None:
        """A subscription was answered."""
        answer = self._subscribing.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(granted)

    def has_arrived(self, message: Message) -> None:
        """A message came."""
        if len(self._incoming) >= MAX_QUEUED:
            self._overflowed = True
            return
        self._incoming.append(message)
        self._arrived.set()

    async def _end_silence(self) -> None:
        """Make the connection anew where the broker acknowledges nothing over it."""
        while True:
            left = self._silence.left(time.monotonic())
            if left == 0 and self._client is not None and self._client.up:
                self._client.cut()
            await asyncio.sleep(left or self._answer_seconds / 4)

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside everything else, until the link closes."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, client: PahoClient) -> None:
        """After each connection: say that we are there, and ask again for what we asked for before."""
        filters, armed = list(self._filters), client.armed
        with contextlib.suppress(NetworkError):
            if armed is not None:
                await self.publish(armed.topic, armed.birth, retain=True)
            for start in range(0, len(filters), _FILTERS_A_PACKET):
                if await self._ask_for(client, filters[start : start + _FILTERS_A_PACKET]) is False:
                    self._tell(LinkState(connected=True, reason="the broker took back the right to read some topics"))

    def _tell(self, state: LinkState) -> None:
        for callback in tuple(self._callbacks):
            callback(state)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _unreachable(self, why: str) -> BrokerUnreachableError:
        return BrokerUnreachableError(
            f"The broker {self._address.shown} cannot be reached: {why}.",
            advice="Check that the broker runs, that the address is right, and that no firewall is between.",
        )

    def _refused(self, code: int) -> BrokerRefusedError:
        return BrokerRefusedError(
            f"The broker {self._address.shown} refused the connection: {reason(code)}.",
            advice=advice(code),
        )

    def _closed_error(self) -> BrokerUnreachableError:
        return BrokerUnreachableError(
            f"The link to {self._address.shown} was closed before the broker had answered.",
            advice="What was sent is not delivered for certain; whoever keeps it in an outbox offers it again.",
        )


async def _finish(task: asyncio.Future[None]) -> None:
    """Wait for ``task`` to its end even if we are cancelled meanwhile, then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                break
            cancelled = error
        except Exception:  # noqa: BLE001 - taken from the task below
            break
    if cancelled is not None:
        raise cancelled
    task.result()
