"""Where a device stands with its community, as far as it knows: waiting, in, put out, on its way out.

Everything is one fact in the device's database, so that whatever was killed goes on where it was.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.errors import AwaitingApprovalError, LeavingError, NotJoinedError, RevokedError
from agent.federation.messages import StandingNotice
from agent.federation.store import DeviceStore
from agent.governance.charter import Charter


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Application(_Fact):
    """A request to join that was made and not answered for good.

    Attributes:
        invite: the line; it holds a secret.
        charter: which the owner agreed to.
        base: path of the base that was found for it.
        asked: Unix time, seconds.
    """

    invite: str
    charter: Charter
    base: str
    allow_plaintext: bool = False
    asked: int


class Farewell(_Fact):
    """A leave that was begun.

    Attributes:
        about: hex id of the message to the hub.
        erase: everything of the device goes too.
        told: the hub has answered; there is nothing more to say to it.
        done: the device has left, and keeps what it has.
    """

    about: str
    erase: bool = False
    told: bool = False
    done: bool = False


F = TypeVar("F", bound=_Fact)

_APPLICATION, _FAREWELL, _REVOKED = "application", "farewell", "revoked"
FACTS = (_APPLICATION, _FAREWELL, _REVOKED)
"""What is forgotten when a device comes in anew."""


def _read(store: DeviceStore, key: str, kind: type[F]) -> F | None:
    raw = store.fact(key)
    try:
        return kind.model_validate_json(raw) if raw else None
    except ValidationError:  # of another version: as if it was never begun
        return None


def application(store: DeviceStore) -> Application | None:
    """Give the request to join that waits for its answer."""
    return _read(store, _APPLICATION, Application)


def save_application(store: DeviceStore, made: Application) -> None:
    """Remember a request to join, before it is sent."""
    store.set_fact(_APPLICATION, made.model_dump_json().encode())


def forget_application(store: DeviceStore) -> None:
    """The request was refused: the next one begins anew."""
    store.set_fact(_APPLICATION, b"")


def farewell(store: DeviceStore) -> Farewell | None:
    """Give the leave that was begun."""
    return _read(store, _FAREWELL, Farewell)


def save_farewell(store: DeviceStore, made: Farewell) -> None:
    """Remember how far a leave is."""
    store.set_fact(_FAREWELL, made.model_dump_json().encode())


def revoked(store: DeviceStore) -> StandingNotice | None:
    """Give the hub's word that this device is out."""
    raw = store.fact(_REVOKED)
    return StandingNotice.decode(raw) if raw else None


def save_revoked(store: DeviceStore, notice: StandingNotice) -> None:
    """Keep the hub's word that this device is out; the caller has checked its signature."""
    store.set_fact(_REVOKED, notice.encode())


def explain_revoked(name: str, notice: StandingNotice) -> RevokedError:
    """Say to the owner that the hub put this device out."""
    why = f": {notice.reason}" if notice.reason else ""
    return RevokedError(
        f"the hub of {name!r} revoked this device{why}",
        advice="It takes part no more, and keeps what it has. If that is a mistake, ask the hub's operator for a new"
        " invite and come back with fresh keys: bramble leave --erase, bramble init, bramble join INVITE.",
    )


def require_part(store: DeviceStore) -> None:
    """Look that a device may take part at all.

    Raises:
        RevokedError: the hub put it out.
        LeavingError: it is on its way out, or has left.
        AwaitingApprovalError: it asked to be let in, and waits.
        NotJoinedError: it belongs to no community.
    """
    waiting = application(store)
    if not store.is_member and waiting is not None:
        raise AwaitingApprovalError(
            f"this device asked to join {waiting.charter.name!r}, and a steward has not approved it yet",
            advice="Run `bramble join` again later, without an invite: it asks whether there is an answer.",
        )
    name = store.membership.charter.name
    notice, leaving = revoked(store), farewell(store)
    if notice is not None:
        raise explain_revoked(name, notice)
    if leaving is not None and leaving.done:
        raise NotJoinedError(
            f"this device has left {name!r}",
            advice="To come back, ask for a new invite and run `bramble join INVITE`. What it has can still be used:"
            " `bramble chat`, `bramble serve`. `bramble leave --erase` removes that too.",
        )
    if leaving is not None:
        raise LeavingError(
            f"this device began to leave {name!r}, and the hub has not heard of it yet",
            advice="Finish it: bramble leave",
        )
