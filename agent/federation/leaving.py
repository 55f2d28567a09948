"""Leaving a community, and what is removed when everything is to go. Killed anywhere, it goes on where it was.

The order is what makes that so. First it is written down that the device leaves, and what waits to be sent is taken
back; then the hub is told, for a bounded time; then, where all is to go, files are removed, the keys among them, and
the database, which remembers how far this is, last.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time

from agent.crypto.envelope import parse, sign, verify
from agent.crypto.identity import Identity
from agent.errors import BrambleError, ProtocolError
from agent.federation.messages import Leave, Receipt
from agent.federation.standing import Farewell, farewell, save_farewell
from agent.federation.store import DeviceStore
from agent.federation.succession import follow
from agent.paths import Home, explained_disk
from agent.transport.link import Link, Message
from agent.transport.outbox import Outbox
from agent.transport.topics import Topics

TELL_SECONDS = 20.0
"""How long the hub is told, if it does not answer."""

AGAIN_SECONDS = 3.0

_COMMUNITY_FACTS = (
    "membership",
    "announcement",
    "orphaned",
    "status",
    "application",
    "farewell",
    "revoked",
    "succession",
)
_COMMUNITY_TABLES = (
    "releases",
    "rounds",
    "verdicts",
    "residuals",
    "residuals_before",
    "moments",
    "outbox",
)


def begin(store: DeviceStore, *, erase: bool) -> Farewell:
    """Write down that the device leaves, and take back whatever it has not sent; or give a leave that was begun."""
    begun = farewell(store)
    if begun is not None:
        if erase and not begun.erase:
            begun = begun.model_copy(update={"erase": True})
            save_farewell(store, begun)
        return begun
    fresh = Farewell(about=secrets.token_hex(16), erase=erase)
    with store.transaction():
        store.withdraw_unsent(reason="left")
        Outbox(store.connection).clear()
        store.put_fact("farewell", fresh.model_dump_json().encode())
    return fresh


async def tell(
    store: DeviceStore, identity: Identity, link: Link, begun: Farewell, *, patience: float = TELL_SECONDS
) -> str:
    """Tell the hub, until it has answered or patience ends.

    Returns:
        What stood in the way; nothing where the hub knows.
    """
    try:
        async with asyncio.timeout(patience), link:
            await _tell(store, identity, link, begun)
    except TimeoutError:
        return f"the hub did not answer within {patience:.0f} seconds"
    except BrambleError as error:
        return str(error)
    save_farewell(store, begun.model_copy(update={"told": True}))
    return ""


async def _tell(store: DeviceStore, identity: Identity, link: Link, begun: Farewell) -> None:
    membership = store.membership
    topics, community = Topics(membership.community), bytes.fromhex(membership.community)
    about, outbox = bytes.fromhex(begun.about), Outbox(store.connection)
    await link.subscribe(topics.hub("card"))
    await link.subscribe(topics.all_to(identity.id))
    while True:
        counter, now = outbox.allocate_counter(), int(time.time() * 1000)
        body = Leave(about=about).encode()
        envelope = sign(identity, kind="leave", community=community, counter=counter, time=now, body=body)
        await link.publish(topics.from_(identity.id, "leave"), envelope)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_SECONDS):
                async for message in link.messages():
                    message.ack()
                    if _is_answer(store, message, about):
                        return


def _is_answer(store: DeviceStore, message: Message, about: bytes) -> bool:
    """Say whether this is the hub's word that the device is out: by its own wish, or because it was revoked before."""
    membership = store.membership
    with contextlib.suppress(ProtocolError):
        unverified = parse(message.payload)
        if unverified.community != bytes.fromhex(membership.community):
            return False
        if unverified.kind == "card":
            follow(store, unverified)
            return False
        envelope = verify(unverified, membership.hub_identity)
        if envelope.kind == "standing":
            return True
        return envelope.kind == "receipt" and Receipt.decode(envelope.body).about == about
    return False


def forget_community(store: DeviceStore) -> None:
    """Remove everything that belongs to a community, so that the device may be in another; keys and consents stay."""
    remove_work(store.home)
    with store.transaction() as connection:
        for table in _COMMUNITY_TABLES:
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 (ours)
        for fact in _COMMUNITY_FACTS:
            connection.execute("DELETE FROM facts WHERE key = ?", (fact,))


def remove_work(home: Home) -> None:
    """Remove adapters, transfers and whatever was made of the owner's text."""
    for directory in (home.work, home.inbox, home.blobs):
        with explained_disk(directory):
            for path in directory.iterdir() if directory.is_dir() else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def erase(home: Home, store: DeviceStore) -> None:
    """Remove a device: adapters, what was made of text, keys, settings, and at the very end the database.

    Base models stay: they are nobody's secret, and large. The store is closed.
    """
    remove_work(home)
    with explained_disk(home.root):
        for directory in (home.keys, home.work, home.inbox, home.blobs):
            if directory.is_dir():
                shutil.rmtree(directory)
        home.settings.unlink(missing_ok=True)
        store.connection.close()  # which takes the log into the database, so that one file is all there is
        home.database.unlink(missing_ok=True)
        for path in (*home.root.glob(f"{home.database.name}-*"), home.lock):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # base models are kept, or the owner put something there
            home.root.rmdir()
