"""A device changes its keys, and follows a hub that changed its own. Killed anywhere, it goes on where it was.

The new keys wait in a file of their own while the hub is asked, by the old ones, to take them instead. Once it has said
yes, that is written down; then the new file takes the place of the old one, and the membership follows. Whatever of
that was done is found again; nothing of it needs the hub a second time, and it answers a second time all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.crypto import keyfile
from agent.crypto.envelope import Unverified, parse, sign, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.sealing import unseal
from agent.crypto.succession import leads_to, statement
from agent.errors import BrambleError, ProtocolError, UnknownSenderError
from agent.federation.messages import Card, Succeed, SuccessionReply
from agent.federation.sealing import succeeded_info
from agent.federation.store import DeviceStore
from agent.transport.link import Link, Message
from agent.transport.outbox import Outbox
from agent.transport.topics import Topics

ASK_SECONDS = 30.0
AGAIN_SECONDS = 3.0

_FACT = "succession"


class _Agreed(BaseModel):
    """The hub has taken the new keys.

    Attributes:
        old: id that the device had, and ``new`` the one that it has from now on.
        username: account at the embedded broker, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    old: str
    new: str
    username: str
    password: str


async def ask(store: DeviceStore, old: Identity, new: Identity, link: Link, *, patience: float = ASK_SECONDS) -> str:
    """Ask the hub to take the new keys for the old ones, until it has or patience ends.

    Returns:
        What stood in the way; nothing where the hub has taken them, which is written down then.
    """
    try:
        async with asyncio.timeout(patience), link:
            reply = await _ask(store, old, new, link)
    except TimeoutError:
        return f"the hub did not answer within {patience:.0f} seconds"
    except BrambleError as error:
        return str(error)
    agreed = _Agreed(old=old.id, new=new.id, username=reply.username, password=reply.password)
    store.set_fact(_FACT, agreed.model_dump_json().encode())
    return ""


async def _ask(store: DeviceStore, old: Identity, new: Identity, link: Link) -> SuccessionReply:
    membership = store.membership
    topics, community = Topics(membership.community), bytes.fromhex(membership.community)
    proof = new.sign(statement(community, old.public, new.public))
    body = Succeed(public=new.public.encode(), proof=proof).encode()
    outbox = Outbox(store.connection)
    await link.subscribe(topics.hub("card"))
    await link.subscribe(topics.all_to(old.id))
    while True:
        counter, now = outbox.allocate_counter(), int(time.time() * 1000)
        envelope = sign(old, kind="succeed", community=community, counter=counter, time=now, body=body)
        await link.publish(topics.from_(old.id, "succeed"), envelope)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                async for message in link.messages():
                    message.ack()
                    if (reply := _answer(store, message, old, new)) is not None:
                        return reply


def _answer(store: DeviceStore, message: Message, old: Identity, new: Identity) -> SuccessionReply | None:
    """Read the hub's answer; None for any other message."""
    with contextlib.suppress(ProtocolError):
        unverified = parse(message.payload)
        community = bytes.fromhex(store.membership.community)
        if unverified.community != community:
            return None
        if unverified.kind == "card":
            follow(store, unverified)
        elif unverified.kind == "succeeded":
            hub = store.membership.hub_identity
            info = succeeded_info(community, hub.fingerprint(), old.id, new.id)
            return SuccessionReply.decode(unseal(new, verify(unverified, hub).body, info))
    return None


def is_agreed(store: DeviceStore) -> bool:
    """Say whether the hub has taken new keys that are not in their place yet."""
    return bool(store.fact(_FACT))


def finish(store: DeviceStore) -> bool:
    """Put keys that the hub has taken in the place of the old ones; False where there are none.

    What is owed to the hub is offered under the new id: what it had counted it knows under that, too.
    """
    raw = store.fact(_FACT)
    try:
        agreed = _Agreed.model_validate_json(raw) if raw else None
    except ValidationError:
        agreed = None
    if agreed is None:
        return False
    keyfile.succeed(store.home.keys)
    with store.transaction() as connection:
        membership = store.membership.model_copy(update={"username": agreed.username, "password": agreed.password})
        store.put_fact("membership", membership.model_dump_json().encode())
        connection.execute("UPDATE outbox SET topic = replace(topic, ?, ?)", (agreed.old, agreed.new))
        store.put_fact(_FACT, b"")
    return True


def follow(store: DeviceStore, unverified: Unverified) -> PublicIdentity:
    """Take in a hub's card: where its keys came after the pinned ones, they are pinned from now on.

    Returns:
        The hub's keys that are pinned now.

    Raises:
        UnknownSenderError: they did not.
        ProtocolError: the card cannot be read, or is not its own.
    """
    membership = store.membership
    pinned, card = membership.hub_identity, Card.decode(unverified.claimed.body)
    shown = PublicIdentity.decode(card.public)
    verify(unverified, shown)
    if shown == pinned:
        return pinned
    if not leads_to(pinned.fingerprint(), shown, card.successions, bytes.fromhex(membership.community)):
        raise UnknownSenderError(
            f"a hub {shown.short_id} shows itself that did not come after {pinned.short_id}",
            advice="It is not believed. If your hub was made anew, ask its operator for a new invite.",
        )
    store.save_membership(membership.model_copy(update={"hub": shown.encode()}))
    return shown
