"""Who may join: a newcomer's sealed request against the invites that were given out."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

from agent.crypto.envelope import Unverified, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.passwords import derive_password
from agent.crypto.sealing import unseal
from agent.errors import BadSignatureError, MalformedMessageError, UnknownSenderError
from agent.federation.invite import invite_proof
from agent.federation.messages import JoinReply, JoinRequest
from agent.federation.sealing import join_info
from agent.hub.issuing import with_credentials
from agent.hub.members import Admitted
from agent.hub.store import HubConfig, HubStore

_ASK_AGAIN = "Ask the hub's operator for a new invite (`bramble hub invite`)."
_REFUSALS = {
    "expired": ("this invite has expired", _ASK_AGAIN),
    "used-up": ("this invite has been used as often as it may be", _ASK_AGAIN),
    "taken-back": ("this invite was taken back", _ASK_AGAIN),
    "refused": ("a steward of the community said no", "Ask the hub's operator why; nothing else can be done here."),
    "revoked": (
        "the keys of this device were revoked",
        "To come back, make fresh keys (`bramble leave --erase`, then `bramble init`) and ask for a new invite.",
    ),
    "left": ("this device has left the community", _ASK_AGAIN),
    "succeeded": (
        "this device has other keys by now",
        "Use those; if they are lost, make fresh ones and ask for a new invite.",
    ),
}


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a request: the answer, for whom it is sealed, and what it changed."""

    public: PublicIdentity
    reply: JoinReply
    nickname: str
    outcome: Admitted | Literal["unknown"]


def consider(store: HubStore, identity: Identity, unverified: Unverified, *, invite: str, now: int) -> Admission:
    """Decide on a join request.

    A device that was admitted before gets the same answer again, so a reply that was lost costs nothing.

    Raises:
        ProtocolError: the request is malformed, sealed for somebody else, or not signed by the keys inside it.
    """
    config = store.config
    hub, community = identity.public.fingerprint(), bytes.fromhex(config.community)
    info = join_info(community, hub, unverified.sender, _invite_bytes(invite))
    request = JoinRequest.decode(unseal(identity, unverified.claimed.body, info))
    public = PublicIdentity.decode(request.public)
    if public.id != unverified.sender:
        raise UnknownSenderError(
            f"a join request of {unverified.sender[:10]} carries the keys of {public.id[:10]}",
            advice="The request was made up or mixed up; it was dropped.",
        )
    if public.role != "device":
        raise UnknownSenderError(
            f"a join request of {public.short_id} carries the keys of a {public.role}", advice="It was dropped."
        )
    verify(unverified, public)
    outcome = _outcome(store, public, request, invite=invite, now=now, asked=unverified.claimed.time)
    reply = _reply(config, public, outcome)
    if reply.accepted:
        reply = with_credentials(reply, store, public.id, request.certificate_request, now=now)
    return Admission(public, reply, request.nickname, outcome)


def _invite_bytes(invite: str) -> bytes:
    try:
        return bytes.fromhex(invite)
    except ValueError as cause:
        raise MalformedMessageError(f"{invite!r} is no invite's id", advice="The request was dropped.") from cause


def _outcome(
    store: HubStore, public: PublicIdentity, request: JoinRequest, *, invite: str, now: int, asked: int
) -> Admitted | Literal["unknown"]:
    config = store.config
    secret = store.invite_secret(invite)
    if secret is None:
        return "unknown"
    expected = invite_proof(secret, bytes.fromhex(config.community), request.public)
    if not hmac.compare_digest(expected, request.proof):
        raise BadSignatureError(
            f"the join request of {public.short_id} does not prove that it holds invite {invite}",
            advice="The invite was copied wrongly, or somebody is guessing; the request was dropped.",
        )
    approval = config.admission == "approval"
    return store.admit(public, nickname=request.nickname, invite=invite, now=now, approval=approval, asked=asked)


def _reply(config: HubConfig, public: PublicIdentity, outcome: Admitted | Literal["unknown"]) -> JoinReply:
    if outcome in {"admitted", "member"}:
        return accepted(config, public.id)
    if outcome in {"applied", "pending"}:
        return JoinReply(
            accepted=False,
            pending=True,
            message="a steward is to approve this device",
            advice="Run `bramble join` again later. The steward sees it in `bramble hub members`.",
        )
    message, advice = _REFUSALS.get(outcome, ("this hub gave out no such invite", _ASK_AGAIN))
    return JoinReply(accepted=False, message=message, advice=advice)


def accepted(config: HubConfig, device: str) -> JoinReply:
    """Give what a member needs to take part: its account at the embedded broker, if the hub runs that."""
    if not config.embedded:
        return JoinReply(accepted=True)
    return JoinReply(
        accepted=True, username=device, password=derive_password(bytes.fromhex(config.broker_secret), device)
    )
