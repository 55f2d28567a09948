"""The running hub: what it hears, what it says, and the rounds, each in a room of its own, put together.

All state is in the store; the rooms hold caches and wiring only, so that stopping the hub at any point costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from agent.crypto.identity import Identity
from agent.events import Events
from agent.hub.conductor import Conductor
from agent.hub.publishing import Publisher
from agent.hub.reception import Reception
from agent.hub.store import HubStore, hub_blobs
from agent.transport.address import without_credentials
from agent.transport.link import Link, LinkState

TICK_SECONDS = 0.5
"""How often the hub looks at the clock, and whether an operator went back to an earlier release."""


class Hub:
    """Runs the rounds of one community.

    Args:
        store: the hub's memory.
        identity: the hub's keys.
        link: to the broker, not yet connected.
        events: where to tell what happens.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        *,
        store: HubStore,
        identity: Identity,
        link: Link,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._link = link
        self._events = events = events.about()
        state = store.round_state()
        if state is not None:
            events.context["round"] = state.number
        self._config = store.config
        self._speak = asyncio.Event()
        self._look = asyncio.Event()
        blobs = hub_blobs(store.home)
        self._publisher = Publisher(store=store, blobs=blobs, identity=identity, link=link, events=events)
        self._conductor = Conductor(store=store, blobs=blobs, publisher=self._publisher, events=events, clock=clock)
        self._reception = Reception(
            store=store,
            blobs=blobs,
            identity=identity,
            link=link,
            publisher=self._publisher,
            events=events,
            clock=clock,
            moved=self._look.set,
        )

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        return self._link.connected

    def traffic(self) -> dict[str, int]:
        """Give the bytes of messages received and sent since the start."""
        return {"received": self._reception.received_bytes, "sent": self._publisher.sent_bytes}

    def queues(self) -> dict[str, int]:
        """Give how much waits in memory: messages to be handled, and adapters to be sent."""
        return {"messages": self._reception.waiting, "adapters": self._publisher.waiting}

    def refused(self) -> dict[str, int]:
        """Give how many messages were dropped since the start, by reason."""
        return dict(self._reception.refusals.counts)

    async def run(self) -> None:
        """Run until cancelled."""
        self._link.on_state(self._link_changed)
        async with self._link:
            topics = self._publisher.topics
            await self._link.subscribe(topics.all_joins())
            await self._link.subscribe(topics.all_from())
            await self._reception.notice_decisions()
            self._publisher.started()
            self._conductor.resume()
            broker = without_credentials(self._config.broker)
            self._events.say(
                "hub-ready",
                f"hub {self._identity.short_id} of {self._config.name!r} is at {broker}",
                community=self._config.community,
                devices=len(self._reception.known),
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reception.listen(), name="hub-listen")
                tasks.create_task(self._conduct(), name="hub-conduct")
                tasks.create_task(self._publisher.serve(self._reception.known), name="hub-serve")
                tasks.create_task(self._heartbeat(), name="hub-heartbeat")

    async def _conduct(self) -> None:
        """Move the rounds on when something came in, and look at the clock now and then."""
        while True:
            self._look.clear()
            await self._reception.notice_decisions()
            await self._conductor.advance()
            self._reception.tidy()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._look.wait()

    def _link_changed(self, state: LinkState) -> None:
        self._events.say("link", f"broker: {state.reason}", connected=state.connected, broker=state.broker)
        if state.connected:
            self._speak.set()

    async def _heartbeat(self) -> None:
        """Publish the retained messages at first, after every break, and now and then: a broker may lose one."""
        while True:
            self._speak.clear()
            await self._publisher.introduce()
            await self._publisher.announce()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.heartbeat_seconds):
                    await self._speak.wait()
