"""A device's certificate is renewed while it counts, over the link that stands; once it has expired, by the other door.

Certificates live for weeks. A device that runs asks for the next one when two thirds of the life of its own are over,
and goes on asking until it has it. One that was away for longer cannot reach the members' listener any more: it says
the same, signed by the same identity, on the listener for newcomers, and needs no invite.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from agent.crypto.envelope import Unverified, parse, sign, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.errors import MalformedMessageError, NetworkError, ProtocolError
from agent.events import Events
from agent.federation.credentials import Credentials
from agent.federation.messages import Issued, Renew
from agent.federation.sending import Sender
from agent.federation.store import Membership
from agent.transport.link import Link
from agent.transport.topics import Topics

ASK_AGAIN_SECONDS = (15.0, 3600.0)
"""How long to wait for an answer before asking again: at first, and at most."""

LOOK_SECONDS = 3600.0
"""How often the clock is looked at: it goes on while a machine sleeps, and may be set."""

DOOR = "renew"
"""In the place of an invite, in topics."""


class Renewal:
    """Keeps one device's certificate fresh.

    Args:
        credentials: where it is.
        membership: of the device.
        hub: gives the hub's keys, which may change.
        meet: follows the hub's card where the keys have changed; raises ProtocolError where it is not to be believed.
        identity: the device's keys.
        sender: says things to the hub over the device's link.
        door: makes a link to the listener for newcomers, not yet connected; None where there is none.
        events: where to tell what happens.
        clock: Unix time in seconds.
        ask_again: bounds of the waiting time, seconds.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        membership: Membership,
        hub: Callable[[], PublicIdentity],
        meet: Callable[[Unverified], None],
        identity: Identity,
        sender: Sender,
        door: Callable[[], Link] | None,
        events: Events,
        clock: Callable[[], float] = time.time,
        ask_again: tuple[float, float] = ASK_AGAIN_SECONDS,
    ) -> None:
        self._credentials = credentials
        self._hub = hub
        self._meet = meet
        self._community = bytes.fromhex(membership.community)
        self._topics = Topics(membership.community)
        self._identity = identity
        self._sender = sender
        self._door = door
        self._events = events
        self._clock = clock
        self._ask_again = ask_again
        self._came = asyncio.Event()
        self.listening = asyncio.Event()
        """Set once the device's link brings it what the hub says: an answer that came earlier would be lost."""

    async def run(self) -> None:
        """Look at the certificate until cancelled, and renew it when it is time; ends where there is none."""
        pause = self._ask_again[0]
        while (certificate := self._credentials.certificate()) is not None:
            now = self._clock()
            renamed = certificate.name != self._credentials.device  # this device has other keys by now
            if now < certificate.renewal and not renamed:
                pause = self._ask_again[0]
                await asyncio.sleep(min(certificate.renewal - now, LOOK_SECONDS))
                continue
            expired = renamed or now >= certificate.ends
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause if expired else min(pause, certificate.ends - now)):
                    await self._ask(expired=expired)
                    await self._came.wait()
            pause = min(2 * pause, self._ask_again[1])

    def answered(self, issued: Issued) -> None:
        """Take in a certificate that the hub issued.

        Raises:
            MalformedMessageError: it is not for this device.
        """
        before = self._credentials.certificate()
        kept = self._credentials.keep(issued.certificate, issued.authority)
        if before is None or kept.serial != before.serial:
            until = time.strftime("%Y-%m-%d", time.localtime(kept.ends))
            self._events.say("certificate-renewed", f"a new certificate is good until {until}", ends=int(kept.ends))
        self._came.set()

    async def _ask(self, *, expired: bool) -> None:
        asked = Renew(certificate_request=self._credentials.request())
        if not expired or self._door is None:
            await self.listening.wait()
            await self._sender.say("renew", asked)
            return
        self._events.say("certificate-expired", "the certificate counts no more; asking for another as newcomers do")
        try:
            await self._ask_at(self._door(), asked)
        except NetworkError as error:
            self._events.say("certificate-not-renewed", f"{error} {error.advice}", code=error.code)

    async def _ask_at(self, door: Link, asked: Renew) -> None:
        """Ask at the newcomers' listener, and wait there for the answer."""
        device = self._identity.id
        async with door:
            await door.subscribe(self._topics.hub("card"))  # the hub may have changed its keys since
            await door.subscribe(self._topics.joined(DOOR, device))
            envelope = sign(
                self._identity,
                kind="renew",
                community=self._community,
                counter=self._sender.outbox.allocate_counter(),
                time=int(self._clock() * 1000),
                body=asked.encode(),
            )
            await door.publish(self._topics.join(DOOR, device), envelope)
            async for message in door.messages():
                message.ack()
                try:
                    if self._is_answer(message.payload):
                        return
                except ProtocolError as error:
                    self._events.say("message-refused", f"a message was refused: {error}", code=error.code)

    def _is_answer(self, payload: bytes) -> bool:
        unverified = parse(payload)
        if unverified.community != self._community or unverified.kind not in {"card", "certificate"}:
            raise MalformedMessageError("something else came than a card or certificate", advice="It was dropped.")
        if unverified.kind == "card":
            self._meet(unverified)
            return False
        self.answered(Issued.decode(verify(unverified, self._hub()).body))
        return True
