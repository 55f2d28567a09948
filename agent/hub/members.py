"""The book of members: invites that were given out, the devices that came in on them, and their anti-replay windows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update

from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.hub import tables
from agent.hub.database import Database


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """An enrolled device."""

    device: str
    public: PublicIdentity
    nickname: str
    joined: int
    replay: ReplayWindow


class Members(Database):
    """Invites and devices."""

    def add_invite(self, invite: str, secret: bytes, *, uses: int, expires: int) -> None:
        """Remember an invite that was given out."""
        values = {
            "invite": invite,
            "secret": secret,
            "uses_left": uses,
            "expires": expires,
            "created": int(time.time()),
        }
        with self.transaction() as connection:
            connection.execute(insert(tables.invites).values(values))

    def invite_secret(self, invite: str) -> bytes | None:
        """Give the secret of an invite, spent or not."""
        with self.reading() as connection:
            row = connection.execute(select(tables.invites.c.secret).where(tables.invites.c.invite == invite)).first()
        return None if row is None else bytes(row.secret)

    def admit(self, public: PublicIdentity, *, nickname: str, invite: str, now: int) -> str:
        """Let a device in on an invite, using one of its uses; a device that is in already stays in.

        Returns:
            ``"admitted"``, ``"member"`` (was in already), ``"expired"`` or ``"used-up"``.
        """
        with self.transaction() as connection:
            known = select(tables.devices.c.device).where(tables.devices.c.device == public.id)
            if connection.execute(known).first() is not None:
                return "member"
            column = tables.invites.c
            row = connection.execute(select(column.uses_left, column.expires).where(column.invite == invite)).one()
            if row.expires <= now:
                return "expired"
            if row.uses_left <= 0:
                return "used-up"
            left = {"uses_left": row.uses_left - 1}
            connection.execute(update(tables.invites).where(column.invite == invite).values(left))
            values = {
                "device": public.id,
                "public": public.encode(),
                "nickname": nickname,
                "invite": invite,
                "joined": now,
                "replay": ReplayWindow().to_bytes(),
            }
            connection.execute(insert(tables.devices).values(values))
        return "admitted"

    def devices(self) -> list[DeviceRow]:
        """Give everybody who is enrolled, in order of id."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.devices).order_by(tables.devices.c.device)).all()
        return [_device(row) for row in rows]

    def device(self, device: str) -> DeviceRow | None:
        """Give one device by its id."""
        with self.reading() as connection:
            row = connection.execute(select(tables.devices).where(tables.devices.c.device == device)).first()
        return None if row is None else _device(row)

    def count_devices(self) -> int:
        """Give how many are enrolled."""
        with self.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(tables.devices)).scalar_one())

    def save_replay(self, windows: Mapping[str, ReplayWindow]) -> None:
        """Keep the anti-replay windows of some devices."""
        if not windows:
            return
        column = tables.devices.c
        statement = update(tables.devices).where(column.device == bindparam("who")).values(replay=bindparam("window"))
        rows = [{"who": device, "window": window.to_bytes()} for device, window in windows.items()]
        with self.transaction() as connection:
            connection.execute(statement, rows)


def _device(row: Row[Any]) -> DeviceRow:
    return DeviceRow(
        device=row.device,
        public=PublicIdentity.decode(bytes(row.public)),
        nickname=row.nickname,
        joined=row.joined,
        replay=ReplayWindow.from_bytes(bytes(row.replay)),
    )
