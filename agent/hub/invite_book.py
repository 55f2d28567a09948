"""The book of invites: what was given out, how often it lets in, and until when."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, insert, select, update

from agent.errors import StateError
from agent.hub import tables
from agent.hub.database import Database

GRACE_SECONDS = 24 * 3600
"""How long a newcomer whom an invite let in may still come back on it for the answer, if that was lost."""

InviteState = Literal["open", "used-up", "expired", "taken-back"]


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An invite that was given out.

    Attributes:
        invite: 16 hexadecimal digits.
        uses: devices it lets in, all in all; ``left`` of them still.
        group: of the members that it lets in; empty for none.
        expires: Unix time, seconds, as is ``created``.
        taken_back: when a steward took it back; 0 where none did.
    """

    invite: str
    uses: int
    left: int
    group: str
    created: int
    expires: int
    taken_back: int

    def state(self, now: float) -> InviteState:
        """Say whether it lets anybody new in, and why not."""
        if self.taken_back:
            return "taken-back"
        if self.expires <= now:
            return "expired"
        return "open" if self.left > 0 else "used-up"


class InviteBook(Database):
    """Invites."""

    def add_invite(self, invite: str, secret: bytes, *, uses: int, expires: int, group: str = "") -> None:
        """Remember an invite that was given out."""
        values = {
            "invite": invite,
            "secret": secret,
            "uses": uses,
            "uses_left": uses,
            "expires": expires,
            "created": int(time.time()),
            "member_group": group,
        }
        with self.transaction() as connection:
            connection.execute(insert(tables.invites).values(values))

    def invite_secret(self, invite: str) -> bytes | None:
        """Give the secret of an invite, spent or not."""
        with self.reading() as connection:
            row = connection.execute(select(tables.invites.c.secret).where(tables.invites.c.invite == invite)).first()
        return None if row is None else bytes(row.secret)

    def invites(self) -> list[InviteRow]:
        """Give every invite, oldest first."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.invites).order_by(tables.invites.c.created)).all()
        return [_invite(row) for row in rows]

    def take_back(self, begins: str, *, now: int) -> InviteRow:
        """Let nobody else in on an invite, which is named by its id or the beginning of that.

        Raises:
            StateError: there is none, or more than one that begins so.
        """
        column = tables.invites.c
        with self.transaction() as connection:
            rows = connection.execute(
                select(tables.invites).where(column.invite.startswith(begins, autoescape=True))
            ).all()
            if len(rows) != 1 or not begins:
                found = "no invite begins" if not rows else f"{len(rows)} invites begin"
                raise StateError(
                    f"{found} with {begins!r}", advice="`bramble hub invites` lists them; give more of its id."
                )
            row = _invite(rows[0])
            if not row.taken_back:
                connection.execute(update(tables.invites).where(column.invite == row.invite).values(taken_back=now))
        return row

    def door_is_open(self, invite: str, *, now: float) -> bool:
        """Say whether the broker is to let somebody to the door who holds an invite.

        That is whoever may still come in on it, waits for a steward, or may not have heard yet what was answered.
        """
        with self.reading() as connection:
            row = connection.execute(select(tables.invites).where(tables.invites.c.invite == invite)).first()
            if row is None:
                return False
            if _invite(row).state(now) == "open":
                return True
            column = tables.devices.c
            came = select(func.count()).where(column.invite == invite)
            lately = (column.standing == "pending") | (column.changed > now - GRACE_SECONDS)
            return bool(connection.execute(came.where(lately)).scalar_one())


def find_invite(connection: Connection, invite: str) -> InviteRow:
    """Give an invite that is known to be there, inside a transaction."""
    return _invite(connection.execute(select(tables.invites).where(tables.invites.c.invite == invite)).one())


def use_invite(connection: Connection, row: InviteRow) -> None:
    """Take one of the uses that an invite has left, inside the transaction that found it."""
    column = tables.invites.c
    connection.execute(update(tables.invites).where(column.invite == row.invite).values(uses_left=row.left - 1))


def _invite(row: Row[Any]) -> InviteRow:
    return InviteRow(
        invite=row.invite,
        uses=row.uses,
        left=row.uses_left,
        group=row.member_group,
        created=row.created,
        expires=row.expires,
        taken_back=row.taken_back,
    )
