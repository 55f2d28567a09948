"""The book of members: who is in, who waits, who is out, and each one's anti-replay window.

::

    (asks) ──▶ pending ──▶ member ──▶ revoked
       │          │          ├──────▶ left ──▶ (asks again, on another invite)
       │          └─▶ refused          └─▶ succeeded, by the same device under other keys
       └──────────────▶ (member, where no steward is asked)

``revoked`` and ``succeeded`` are never left again: the keys are out, and the device may come with others. A row stays
in the book whatever becomes of its device, so that whatever was recorded of it opens nothing later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.errors import StateError
from agent.hub import tables
from agent.hub.database import Database, get_fact, set_fact
from agent.hub.invite_book import InviteBook, find_invite, use_invite
from agent.hub.round_book import Dropped, drop_work

Standing = Literal["pending", "member", "refused", "revoked", "left", "succeeded"]
Admitted = Literal["admitted", "applied", "expired", "used-up", "taken-back"] | Standing
"""What became of a request to join: in or waiting from now on, turned away by its invite, or what the device was."""

SHORTEST_ID = 4
"""Characters of an id that are enough to mean a device, where only one begins so."""

_DECISIONS: Mapping[str, tuple[Standing, frozenset[str]]] = {
    "approve": ("member", frozenset({"pending", "refused"})),
    "refuse": ("refused", frozenset({"pending"})),
    "revoke": ("revoked", frozenset({"pending", "member", "refused", "left"})),
}
Decision = Literal["approve", "refuse", "revoke"]


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device that asked to be let in.

    Attributes:
        standing: see the module.
        group: which its invite put it into; empty for none.
        changed: since when its standing is what it is, Unix time, seconds.
        reason: what the steward said.
        successor: the id under which it goes on.
    """

    device: str
    public: PublicIdentity
    nickname: str
    joined: int
    replay: ReplayWindow
    standing: Standing = "member"
    group: str = ""
    invite: str = ""
    changed: int = 0
    reason: str = ""
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    """What a steward's decision, or a device's leaving, did.

    Attributes:
        row: the device as it was before.
        standing: what it is now.
        dropped: what it had sent that does not count any more.
    """

    row: DeviceRow
    standing: Standing
    dropped: Dropped


class Members(InviteBook, Database):
    """Devices."""

    # --- coming in ---------------------------------------------------------------------------------------------

    def admit(
        self,
        public: PublicIdentity,
        *,
        nickname: str,
        invite: str,
        now: int,
        approval: bool = False,
        asked: int | None = None,
    ) -> Admitted:
        """Let a device in on an invite, using one of its uses; a device that is in already stays in.

        Args:
            public: its keys.
            nickname: what it calls itself.
            invite: whose secret it has proved; there is one of this id.
            now: Unix time, seconds.
            approval: a steward is to be asked.
            asked: when the request was signed, Unix time, milliseconds; ``now`` if None.
        """
        with self.transaction() as connection:
            column = tables.devices.c
            found = connection.execute(select(tables.devices).where(column.device == public.id)).first()
            known = None if found is None else _device(found)
            if known is not None and not _may_come_again(known, invite, now * 1000 if asked is None else asked):
                return known.standing
            offered = find_invite(connection, invite)
            state = offered.state(now)
            if state != "open":
                return state
            use_invite(connection, offered)
            standing: Standing = "pending" if approval else "member"
            values = {
                "public": public.encode(),
                "nickname": nickname,
                "invite": invite,
                "joined": now,
                "standing": standing,
                "member_group": offered.group,
                "changed": now,
                "reason": "",
            }
            if known is not None:  # with the window that it had: what it said before is not heard a second time
                connection.execute(update(tables.devices).where(column.device == public.id).values(values))
            else:
                fresh = {"device": public.id, "replay": ReplayWindow().to_bytes()}
                connection.execute(insert(tables.devices).values({**values, **fresh}))
        return "applied" if approval else "admitted"

    # --- going out ---------------------------------------------------------------------------------------------

    def decide(self, begins: str, decision: Decision, *, by: str, reason: str, now: int) -> Decided:
        """Do what a steward says of a device, which is named by its id or the beginning of that.

        Raises:
            StateError: there is no such device, or it is not one of which this can be said.
        """
        standing, earlier = _DECISIONS[decision]
        with self.transaction() as connection:
            row = _find(connection, begins)
            if row.standing not in earlier:
                raise StateError(
                    f"device {row.device[:10]} ({row.nickname}) is {row.standing}: there is nothing to {decision}",
                    advice="`bramble hub members` says what each device is. Keys that were revoked stay out; "
                    "the device may join with fresh ones, on a new invite.",
                )
            decided = _change(connection, row, standing, now=now, reason=reason)
            details = {"device": row.device, "nickname": row.nickname, "reason": reason, "was": row.standing}
            values = {"at": now, "act": decision, "operator": by, "details": json.dumps(details)}
            connection.execute(insert(tables.acts).values(values))
            _touch(connection)
        return decided

    def leave(self, device: str, *, now: int) -> Decided:
        """Let a member go that said so."""
        with self.transaction() as connection:
            return _change(connection, _find(connection, device), "left", now=now, reason="")

    def succeed(self, device: str, new: PublicIdentity, *, replay: ReplayWindow, now: int) -> bool:
        """Take a member's new keys for its old ones: everything that it did is done by the new id from then on.

        Args:
            device: the old id; a member.
            new: the new keys.
            replay: the old keys' anti-replay window, which is the new keys' too: counters go on.
            now: Unix time, seconds.

        Returns:
            False where the new keys are somebody's already; nothing is changed then.
        """
        column = tables.devices.c
        with self.transaction() as connection:
            if connection.execute(select(column.device).where(column.device == new.id)).first() is not None:
                return False
            row = connection.execute(select(tables.devices).where(column.device == device)).mappings().one()
            values = {"device": new.id, "public": new.encode(), "replay": replay.to_bytes(), "changed": now}
            connection.execute(insert(tables.devices).values({**row, **values}))
            old = {"standing": "succeeded", "changed": now, "successor": new.id}
            connection.execute(update(tables.devices).where(column.device == device).values(old))
            for table in (tables.updates, tables.refusals, tables.verdicts):
                connection.execute(update(table).where(table.c.device == device).values(device=new.id))
        return True

    # --- who is there ------------------------------------------------------------------------------------------

    def devices(self) -> list[DeviceRow]:
        """Give every member, in order of id."""
        return [row for row in self.everybody() if row.standing == "member"]

    def everybody(self) -> list[DeviceRow]:
        """Give every device that ever asked to be let in, in order of id."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.devices).order_by(tables.devices.c.device)).all()
        return [_device(row) for row in rows]

    def device(self, device: str) -> DeviceRow | None:
        """Give one device by its id."""
        with self.reading() as connection:
            row = connection.execute(select(tables.devices).where(tables.devices.c.device == device)).first()
        return None if row is None else _device(row)

    def is_member(self, device: str) -> bool:
        """Say whether a device is a member at this moment."""
        column = tables.devices.c
        query = select(column.device).where(column.device == device, column.standing == "member")
        with self.reading() as connection:
            return connection.execute(query).first() is not None

    def outsiders(self) -> frozenset[str]:
        """Give the ids of devices that asked once and are no members."""
        column = tables.devices.c
        with self.reading() as connection:
            return frozenset(connection.execute(select(column.device).where(column.standing != "member")).scalars())

    def decisions(self) -> int:
        """Give a number that grows with each decision of a steward, so that a running hub sees that there was one."""
        return int(self.fact("decisions") or b"0")

    def count_devices(self) -> int:
        """Give how many members there are."""
        query = select(func.count()).select_from(tables.devices).where(tables.devices.c.standing == "member")
        with self.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def save_replay(self, windows: Mapping[str, ReplayWindow]) -> None:
        """Keep the anti-replay windows of some devices."""
        if not windows:
            return
        column = tables.devices.c
        statement = update(tables.devices).where(column.device == bindparam("who")).values(replay=bindparam("window"))
        rows = [{"who": device, "window": window.to_bytes()} for device, window in windows.items()]
        with self.transaction() as connection:
            connection.execute(statement, rows)


def _may_come_again(known: DeviceRow, invite: str, asked: int) -> bool:
    """Say whether a device that is out may be let in once more: on another invite, by a request made since then.

    Otherwise whoever recorded its first request could undo what its owner or a steward decided.
    """
    return known.standing in {"left", "refused"} and known.invite != invite and asked > known.changed * 1000


def _find(connection: Connection, begins: str) -> DeviceRow:
    column = tables.devices.c
    query = select(tables.devices).where(column.device.startswith(begins, autoescape=True)).limit(2)
    rows = connection.execute(query).all() if len(begins) >= SHORTEST_ID else []
    if len(rows) != 1:
        found = "more than one device begins" if rows else "no device begins"
        raise StateError(
            f"{found} with {begins!r}",
            advice=f"`bramble hub members` lists them; give {SHORTEST_ID} characters of the id at least.",
        )
    return _device(rows[0])


def _change(connection: Connection, row: DeviceRow, standing: Standing, *, now: int, reason: str) -> Decided:
    column = tables.devices.c
    values = {"standing": standing, "changed": now, "reason": reason}
    connection.execute(update(tables.devices).where(column.device == row.device).values(values))
    out = standing in {"revoked", "left"}
    return Decided(row, standing, drop_work(connection, row.device) if out else Dropped())


def _touch(connection: Connection) -> None:
    known = int(get_fact(connection, "decisions") or b"0")
    set_fact(connection, "decisions", str(known + 1).encode())


def _device(row: Row[Any]) -> DeviceRow:
    return DeviceRow(
        device=row.device,
        public=PublicIdentity.decode(bytes(row.public)),
        nickname=row.nickname,
        joined=row.joined,
        replay=ReplayWindow.from_bytes(bytes(row.replay)),
        standing=row.standing,
        group=row.member_group,
        invite=row.invite,
        changed=row.changed,
        reason=row.reason,
        successor=row.successor,
    )
