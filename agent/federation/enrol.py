"""Joining a community: meet the hub that the invite names, read its charter, prove the invite, get an account."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from agent.crypto.envelope import Unverified, parse, sign, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.sealing import seal, unseal
from agent.crypto.succession import leads_to
from agent.errors import (
    AwaitingApprovalError,
    BrambleError,
    BrokerUnreachableError,
    InviteRefusedError,
    ProtocolError,
    UnknownSenderError,
)
from agent.federation.invite import Invite
from agent.federation.messages import Admission, Card, CharterNotice, JoinReply, JoinRequest
from agent.federation.sealing import join_info, joined_info
from agent.governance.charter import Charter
from agent.transport.address import without_credentials
from agent.transport.link import Link, Message
from agent.transport.topics import Topics

PATIENCE_SECONDS = 20.0
ASK_AGAIN_SECONDS = 3.0
"""How long to wait for an answer before the same request is sent again: it, or its answer, may have been lost."""

STEWARD_SECONDS = 30.0
"""How long to wait at the door for a steward who is to approve: one may sit beside the newcomer."""


@dataclass(frozen=True, slots=True)
class Door:
    """What a newcomer sees before asking to come in."""

    hub: PublicIdentity
    hub_name: str
    charter: Charter
    operator: str = ""
    admission: Admission = "automatic"


class Newcomer:
    """A device at the door of a community.

    Args:
        link: connected with the invite's newcomer account (or the URL's own).
        invite: what the owner pasted.
        identity: the device's keys.
        nickname: what the hub's operator will see beside the device's id.
        certificate_request: PKCS#10, DER, for the device's TLS key; none where no certificate is wanted.
        patience: seconds to wait for each answer.
        ask_again: seconds after which the request is sent again.
        steward: seconds to wait for a steward's approval.
        told_to_wait: called once, when the hub says that a steward is to approve.
    """

    def __init__(
        self,
        *,
        link: Link,
        invite: Invite,
        identity: Identity,
        nickname: str,
        certificate_request: bytes = b"",
        patience: float = PATIENCE_SECONDS,
        ask_again: float = ASK_AGAIN_SECONDS,
        steward: float = STEWARD_SECONDS,
        told_to_wait: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._link = link
        self._invite = invite
        self._identity = identity
        self._nickname = nickname
        self._certificate_request = certificate_request
        self._patience = patience
        self._ask_again = ask_again
        self._steward = steward
        self._told_to_wait = told_to_wait
        self._refusal: ProtocolError | None = None  # of the last message that was passed over
        self._topics = Topics(invite.community.hex())

    async def meet(self) -> Door:
        """Find the hub whose fingerprint the invite pins, and read its charter.

        Raises:
            BrokerUnreachableError: the broker answers, but no such hub speaks there.
            ProtocolError: nothing came there but what cannot be trusted.
        """
        await self._link.subscribe(self._topics.hub("card"))
        await self._link.subscribe(self._topics.hub("charter"))
        hub: PublicIdentity | None = None
        card: Card | None = None
        waiting: Unverified | None = None
        async for envelope in self._envelopes("card", "charter", within=self._patience):
            with self._passing_over():
                if envelope.kind == "charter":
                    waiting = envelope
                elif hub is None:
                    shown = Card.decode(envelope.claimed.body)
                    hub, card = self._pinned(shown, envelope), shown
                if hub is not None and card is not None and waiting is not None:
                    charter, waiting = waiting, None
                    verify(charter, hub)
                    return Door(
                        hub=hub,
                        hub_name=card.name,
                        charter=CharterNotice.decode(charter.claimed.body).charter,
                        operator=card.operator,
                        admission=card.admission,
                    )
        raise self._silence("show its card and charter")

    async def ask(self, door: Door) -> JoinReply:
        """Ask to be let in; where a steward is to approve, wait a little for that.

        Raises:
            InviteRefusedError: the hub said no, with its reason.
            AwaitingApprovalError: a steward has not approved yet. Asking again later goes on from there.
            BrokerUnreachableError: the hub did not answer.
            ProtocolError: nothing came but what cannot be trusted.
        """
        self._refusal = None
        invite, identity = self._invite, self._identity
        topic = self._topics.joined(invite.invite.hex(), identity.id)
        await self._link.subscribe(topic)
        public = identity.public.encode()
        request = JoinRequest(
            public=public,
            proof=invite.proof(public),
            nickname=self._nickname,
            certificate_request=self._certificate_request,
        )
        info = join_info(invite.community, door.hub.fingerprint(), identity.id, invite.invite)
        body = seal(door.hub.seal_key, request.encode(), info)
        request_topic = self._topics.join(invite.invite.hex(), identity.id)
        ends = time.monotonic() + self._patience
        pending: JoinReply | None = None
        while (left := ends - time.monotonic()) > 0:
            envelope = sign(
                identity, kind="join", community=invite.community, counter=0, time=int(time.time() * 1000), body=body
            )
            await self._link.publish(request_topic, envelope)
            async for answer in self._envelopes("joined", within=min(left, self._ask_again)):
                with self._passing_over():
                    reply = self._answer(door, answer)
                    if not reply.pending:
                        return reply
                    if pending is None:
                        pending, ends = reply, time.monotonic() + self._steward
                        self._told_to_wait(self._steward)
        if pending is not None:
            raise AwaitingApprovalError(
                f"{door.charter.name!r} lets in whom a steward approves, and none has yet", advice=pending.advice
            )
        raise self._silence("answer the request to join")

    def _answer(self, door: Door, answer: Unverified) -> JoinReply:
        """Read the hub's answer.

        Raises:
            InviteRefusedError: it is no.
            ProtocolError: it is not the hub's, or not for this device.
        """
        verify(answer, door.hub)
        info = joined_info(self._invite.community, door.hub.fingerprint(), self._identity.id, self._invite.invite)
        reply = JoinReply.decode(unseal(self._identity, answer.claimed.body, info))
        if not (reply.accepted or reply.pending):
            raise InviteRefusedError(f"the hub did not let this device in: {reply.message}", advice=reply.advice)
        return reply

    @contextlib.contextmanager
    def _passing_over(self) -> Iterator[None]:
        """Pass over a message that cannot be trusted, and remember why: a good one may follow it."""
        try:
            yield
        except ProtocolError as error:
            self._refusal = error

    async def _envelopes(self, *kinds: str, within: float) -> AsyncIterator[Unverified]:
        """Give the community's envelopes of these kinds for so many seconds; what is malformed is passed over."""
        messages = self._link.messages()  # one that is left waiting by a timeout is at its end: each call has its own
        ends = time.monotonic() + within
        while (left := ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    message = await anext(messages)
            except (TimeoutError, StopAsyncIteration):
                return
            message.ack()
            envelope = self._parsed(message)
            if envelope is not None and envelope.kind in kinds:
                yield envelope

    def _parsed(self, message: Message) -> Unverified | None:
        try:
            envelope = parse(message.payload)
        except ProtocolError as error:
            self._refusal = error
            return None
        return envelope if envelope.community == self._invite.community else None

    def _pinned(self, card: Card, envelope: Unverified) -> PublicIdentity:
        hub = PublicIdentity.decode(card.public)
        if not leads_to(self._invite.hub, hub, card.successions, self._invite.community):
            raise UnknownSenderError(
                "a hub at this broker is not the one the invite names",
                advice="Ask for a new invite; if this repeats, somebody may be standing between you and the hub.",
            )
        verify(envelope, hub)
        return hub

    def _silence(self, what: str) -> BrambleError:
        if self._refusal is not None:
            return self._refusal
        return BrokerUnreachableError(
            f"the broker at {without_credentials(self._invite.broker)} answers, but the hub of the invite"
            f" did not {what} within {self._patience:.0f} seconds",
            advice="Ask the hub's operator whether `bramble hub run` is running, then try again.",
        )
