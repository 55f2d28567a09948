"""Joining a community, put together from a device's state directory: what `bramble join` does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from agent.crypto.identity import Identity
from agent.errors import AlreadyMemberError, BrokerRefusedError, InviteRefusedError, NotJoinedError
from agent.federation.credentials import Credentials, newcomer_tls
from agent.federation.enrol import Door, Newcomer
from agent.federation.invite import Invite, parse_invite
from agent.federation.leaving import forget_community
from agent.federation.standing import (
    FACTS,
    Application,
    application,
    farewell,
    forget_application,
    require_part,
    save_application,
)
from agent.federation.store import DeviceStore, Membership, open_device_store
from agent.paths import Home, exclusive
from agent.service import base_on_shelf, find_base
from agent.settings import load_settings, mqtt_protocol
from agent.transport.mqtt import MqttLink


async def join_community(
    home: Home,
    line: str | None,
    *,
    base: Path | None,
    agree: Callable[[Door], bool],
    allow_plaintext: bool = False,
    told_to_wait: Callable[[float], None] = lambda _seconds: None,
) -> Membership:
    """Join the community that an invite names; or go on with a request that was made before.

    Args:
        home: of a device that was initialised.
        line: the invite; the one that was asked with last, if None.
        base: the community's GGUF on this machine; the one on the shelf, or the seedling, if None.
        agree: shown the charter, says whether the owner wants in. Not asked again for a request that waits.
        allow_plaintext: use an unencrypted broker on another machine.
        told_to_wait: called where a steward is to approve, with the seconds for which that is waited for.

    Raises:
        InvalidInviteError: the line is no invite.
        AlreadyMemberError: the device belongs to another community.
        InviteRefusedError: expired, used up, unknown, or the owner or a steward said no.
        AwaitingApprovalError: a steward has not approved yet; calling this again goes on from there.
        BaseMismatchError: the base here is not the community's.
        NetworkError: the broker or hub does not answer.
    """
    identity = Identity.load(home.keys)
    with open_device_store(home) as store, exclusive(home):
        invite, asked = _invited(store, line)
        _check_membership(store, invite)
        link = MqttLink(
            url=invite.broker,
            client_id=identity.id,  # which a broker that has one account for all newcomers tells them apart by
            username=invite.broker_username if invite.broker_password else None,
            password=invite.broker_password or None,
            session_seconds=0,
            protocol=mqtt_protocol(),
            allow_plaintext=allow_plaintext or (asked is not None and asked.allow_plaintext),
            tls=newcomer_tls(invite),
        )
        async with _explained_door(link, invite):
            nickname = load_settings(home.settings).nickname
            credentials = Credentials(home.keys, identity.id)
            newcomer = Newcomer(
                link=link,
                invite=invite,
                identity=identity,
                nickname=nickname,
                certificate_request=credentials.request(),
                told_to_wait=told_to_wait,
            )
            door = await newcomer.meet()
            kept = Path(asked.base) if asked is not None else None
            base_path = find_base(door.charter, base or kept or base_on_shelf(home, door.charter.base_sha256))
            if not (asked is not None and asked.charter == door.charter) and not agree(door):
                raise InviteRefusedError(
                    f"you did not join {door.charter.name!r}", advice="Nothing was sent. The invite is still good."
                )
            made = Application(
                invite=invite.encode(),
                charter=door.charter,
                base=str(base_path),
                allow_plaintext=allow_plaintext,
                asked=int(time.time()),
            )
            save_application(store, made)
            try:
                reply = await newcomer.ask(door)
            except InviteRefusedError:
                forget_application(store)
                raise
        membership = Membership(
            community=invite.community.hex(),
            broker=reply.broker or invite.broker,
            door=invite.broker,
            authority=credentials.joined(reply, invite),
            allow_plaintext=allow_plaintext,
            hub=door.hub.encode(),
            username=reply.username,
            password=reply.password,
            base=base_path,
            charter=door.charter,
            joined=int(time.time()),
        )
        _come_in(store, membership)
    return membership


def _invited(store: DeviceStore, line: str | None) -> tuple[Invite, Application | None]:
    """Give the invite, and the request that was made with it before, if one was.

    Raises:
        InvalidInviteError: the line is no invite.
        InviteRefusedError: it has expired.
        NotJoinedError: there is neither a line nor a request.
    """
    asked = application(store)
    if line is None and asked is None:
        raise NotJoinedError(
            "no invite was given, and no request to join waits for an answer",
            advice="Give the whole line: bramble join bramble1:…",
        )
    invite = parse_invite(line if line is not None else asked.invite if asked else "")
    if asked is not None and parse_invite(asked.invite) == invite:
        return invite, asked
    _check_expiry(invite)
    return invite, None


@contextlib.asynccontextmanager
async def _explained_door(link: MqttLink, invite: Invite) -> AsyncIterator[None]:
    """Be connected to the door; a broker that refuses an invite's own account lets nobody in on it.

    Raises:
        InviteRefusedError: the embedded broker lets nobody in on this invite any more.
        BrokerRefusedError: another broker does not know the account in the invite's address.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(link)
        except BrokerRefusedError as cause:
            if not invite.broker_password:
                raise
            raise InviteRefusedError(
                "the broker lets nobody in on this invite: it has expired, was used up or was taken back, or the hub"
                f" was made anew ({cause})",
                advice="Ask the hub's operator for a new one (`bramble hub invite`).",
            ) from cause
        yield


def _come_in(store: DeviceStore, membership: Membership) -> None:
    """Be a member: of the same community as before, or of another one, of which nothing is left here then."""
    if store.is_member and store.membership.community != membership.community:
        forget_community(store)
    with store.transaction():
        store.put_fact("membership", membership.model_dump_json().encode())
        for fact in FACTS:
            store.put_fact(fact, b"")


def _check_membership(store: DeviceStore, invite: Invite) -> None:
    """Let a device join its own community again, and no second one: rounds and releases belong to one community."""
    left = farewell(store)
    if left is not None and not left.done:
        require_part(store)
    if left is None and store.is_member and store.membership.community != invite.community.hex():
        raise AlreadyMemberError(
            f"this device is a member of {store.membership.charter.name!r} already",
            advice="Leave it first (`bramble leave`), or give the other community a device of its own:"
            " bramble init --home DIR, then join with --home DIR.",
        )


def _check_expiry(invite: Invite) -> None:
    if invite.expires <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(invite.expires))
        raise InviteRefusedError(
            f"this invite expired at {when}",
            advice="Ask the hub's operator for a new one. If the date is wrong, set this machine's clock.",
        )
