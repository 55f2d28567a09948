"""Who may join: a newcomer's sealed request against the invites that were given out."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from agent.crypto.envelope import Unverified, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.passwords import derive_password
from agent.crypto.sealing import unseal
from agent.errors import BadSignatureError, MalformedMessageError, UnknownSenderError
from agent.federation.invite import invite_proof
from agent.federation.messages import JoinReply, JoinRequest
from agent.federation.sealing import join_info
from agent.hub.issuing import with_credentials
from agent.hub.store import HubStore

_ASK_AGAIN = "Ask the hub's operator for a new invite (`bramble hub invite`)."


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a request: the answer, for whom it is sealed, and whether somebody new came in."""

    public: PublicIdentity
    reply: JoinReply
    nickname: str
    is_new: bool


def consider(store: HubStore, identity: Identity, unverified: Unverified, *, invite: str, now: int) -> Admission:
    """Decide on a join request.

    A device that was admitted before gets the same answer again, so a reply that was lost costs nothing.

    Raises:
        ProtocolError: the request is malformed, sealed for somebody else, or not signed by the keys inside it.
    """
    config = store.config
    info = join_info(bytes.fromhex(config.community), _invite_bytes(invite), unverified.sender)
    request = JoinRequest.decode(unseal(identity, unverified.claimed.body, info))
    public = PublicIdentity.decode(request.public)
    if public.id != unverified.sender:
        raise UnknownSenderError(
            f"a join request of {unverified.sender[:10]} carries the keys of {public.id[:10]}",
            advice="The request was made up or mixed up; it was dropped.",
        )
    verify(unverified, public.verify_key)
    reply, is_new = _answer(store, public, request, invite=invite, now=now)
    return Admission(public=public, reply=reply, nickname=request.nickname, is_new=is_new)


def _invite_bytes(invite: str) -> bytes:
    try:
        return bytes.fromhex(invite)
    except ValueError as cause:
        raise MalformedMessageError(f"{invite!r} is no invite's id", advice="The request was dropped.") from cause


def _answer(
    store: HubStore, public: PublicIdentity, request: JoinRequest, *, invite: str, now: int
) -> tuple[JoinReply, bool]:
    config = store.config
    secret = store.invite_secret(invite)
    if secret is None:
        return _refusal("this hub gave out no such invite")
    expected = invite_proof(secret, bytes.fromhex(config.community), request.public)
    if not hmac.compare_digest(expected, request.proof):
        raise BadSignatureError(
            f"the join request of {public.id[:10]} does not prove that it holds invite {invite}",
            advice="The invite was copied wrongly, or somebody is guessing; the request was dropped.",
        )
    outcome = store.admit(public, nickname=request.nickname, invite=invite, now=now)
    if outcome == "expired":
        return _refusal("this invite has expired")
    if outcome == "used-up":
        return _refusal("this invite has been used as often as it may be")
    password = derive_password(bytes.fromhex(config.broker_secret), public.id) if config.embedded else ""
    reply = JoinReply(accepted=True, username=public.id if config.embedded else "", password=password)
    reply = with_credentials(reply, store, public.id, request.certificate_request, now=now)
    return reply, outcome == "admitted"


def _refusal(message: str) -> tuple[JoinReply, bool]:
    return JoinReply(accepted=False, message=message, advice=_ASK_AGAIN), False
