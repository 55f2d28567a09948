"""What the hub remembers, and the transactions in which it changes its mind.

Every public method is one transaction. Whoever kills the hub between two of them finds it, at the next start, exactly
after the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Engine, Row, create_engine, delete, event, func, insert, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.errors import CorruptStateError, DiskFullError, NotInitialisedError, StateError
from agent.federation.messages import Manifest
from agent.governance.charter import Charter
from agent.hub import tables
from agent.hub.rounds import Judgement, RoundState
from agent.paths import Home, out_of_room


class HubConfig(BaseModel):
    """What `bramble hub init` fixed for a community.

    Attributes:
        community: hex of the 16-byte id.
        broker: URL that the hub uses; its port is filled in when the embedded broker first starts.
        device_broker: URL that invites carry; empty where it is the same.
        embedded: the hub runs the broker itself, on loopback.
        allow_plaintext: an unencrypted broker on another machine was asked for explicitly.
        heartbeat_seconds: how often the retained messages are published again, in case one was damaged or lost.
        broker_secret: hex; what the embedded broker's passwords are derived from.
        last_round: after which the community closes; none for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    community: str
    broker: str
    device_broker: str = ""
    embedded: bool
    allow_plaintext: bool = False
    heartbeat_seconds: float = 60.0
    broker_secret: str
    base_path: str
    last_round: int | None
    charter: Charter


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """An enrolled device."""

    device: str
    public: PublicIdentity
    nickname: str
    joined: int
    replay: ReplayWindow


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """An update that counts."""

    update_id: str
    round: int
    device: str
    transfer: str
    tokens: int
    norm: float
    wire_bytes: int
    fp32_bytes: int


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """An adapter the hub made, whatever became of it."""

    manifest: Manifest
    content_key: bytes
    state: str
    updates: tuple[str, ...]


def _pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA secure_delete=ON")  # a round's key that was forgotten is gone from the file too
    cursor.close()


def _engine(home: Home, url: str | None) -> Engine:
    engine = create_engine(url or f"sqlite:///{home.database}")
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _pragmas)
    return engine


class HubStore:
    """The hub's database. A context manager; use :func:`create_store` or :func:`open_store`."""

    def __init__(self, engine: Engine, *, home: Home) -> None:
        self._engine = engine
        self.home = home

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except OperationalError as cause:
            if "full" in str(cause.orig) or out_of_room(self.home.root):
                raise DiskFullError(
                    f"no room on the disk for {self.home.database}",
                    advice="Free some space and start the hub again: what was committed before is kept.",
                ) from cause
            raise StateError(
                f"the hub's database refused to work: {cause.orig}", advice="Check the disk, then start the hub again."
            ) from cause
        except DatabaseError as cause:
            raise CorruptStateError(
                f"{self.home.database} is no valid database: {cause.orig}",
                advice="Restore it from a backup; a round that was open then is asked for again.",
            ) from cause

    def create_tables(self) -> None:
        """Make the tables of a new hub."""
        with self._transaction() as connection:
            tables.metadata.create_all(connection)
            _set_fact(connection, "schema", str(tables.SCHEMA_VERSION).encode())

    # --- facts -------------------------------------------------------------------------------------------------

    def fact(self, key: str) -> bytes | None:
        """Give one fact."""
        with self._transaction() as connection:
            return _fact(connection, key)

    def set_fact(self, key: str, value: bytes) -> None:
        """Keep one fact."""
        with self._transaction() as connection:
            _set_fact(connection, key, value)

    @property
    def config(self) -> HubConfig:
        """What the hub was set up with."""
        raw = self.fact("config")
        if raw is None:
            raise NotInitialisedError(
                f"there is no hub in {self.home.root}", advice="Create one with `bramble hub init`, or pass --home."
            )
        return HubConfig.model_validate_json(raw)

    def save_config(self, config: HubConfig) -> None:
        """Replace what the hub was set up with."""
        self.set_fact("config", config.model_dump_json().encode())

    def next_number(self, key: str) -> int:
        """Give the next value of a durable counter that never goes back, not even with a backup that was restored."""
        with self._transaction() as connection:
            value = max(int.from_bytes(_fact(connection, key) or b"", "big") + 1, time.time_ns() // 1_000_000)
            _set_fact(connection, key, value.to_bytes(8, "big"))
        return value

    # --- invites and devices -----------------------------------------------------------------------------------

    def add_invite(self, invite: str, secret: bytes, *, uses: int, expires: int) -> None:
        """Remember an invite that was given out."""
        values = {
            "invite": invite,
            "secret": secret,
            "uses_left": uses,
            "expires": expires,
            "created": int(time.time()),
        }
        with self._transaction() as connection:
            connection.execute(insert(tables.invites).values(values))

    def invite_secret(self, invite: str) -> bytes | None:
        """Give the secret of an invite, spent or not."""
        with self._transaction() as connection:
            row = connection.execute(select(tables.invites.c.secret).where(tables.invites.c.invite == invite)).first()
        return None if row is None else bytes(row.secret)

    def admit(self, public: PublicIdentity, *, nickname: str, invite: str, now: int) -> str:
        """Let a device in on an invite, using one of its uses; a device that is in already stays in.

        Returns:
            ``"admitted"``, ``"member"`` (was in already), ``"expired"`` or ``"used-up"``.
        """
        with self._transaction() as connection:
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
        with self._transaction() as connection:
            rows = connection.execute(select(tables.devices).order_by(tables.devices.c.device)).all()
        return [_device(row) for row in rows]

    def save_replay(self, device: str, window: ReplayWindow) -> None:
        """Keep a device's anti-replay window."""
        with self._transaction() as connection:
            where = tables.devices.c.device == device
            connection.execute(update(tables.devices).where(where).values(replay=window.to_bytes()))

    # --- rounds ------------------------------------------------------------------------------------------------

    def round_state(self) -> RoundState | None:
        """Give where the hub is."""
        raw = self.fact("round")
        return None if raw is None else RoundState(**json.loads(raw))

    def save_round_state(self, state: RoundState) -> None:
        """Keep where the hub is."""
        self.set_fact("round", json.dumps(asdict(state)).encode())

    def open_round(self, state: RoundState, *, start_release: int, seal_seed: bytes) -> None:
        """Begin a round with a key of its own."""
        values = {
            "round": state.number,
            "start_release": start_release,
            "seal_seed": seal_seed,
            "outcome": "running",
            "reason": "",
            "report": "{}",
        }
        with self._transaction() as connection:
            connection.execute(insert(tables.rounds).values(values))
            _set_fact(connection, "round", json.dumps(asdict(state)).encode())

    def seal_seed(self, number: int) -> bytes:
        """Give the seed of a round's HPKE key; empty once the round is merged."""
        with self._transaction() as connection:
            row = connection.execute(select(tables.rounds.c.seal_seed).where(tables.rounds.c.round == number)).first()
        return b"" if row is None else bytes(row.seal_seed)

    def round_rows(self) -> list[dict[str, Any]]:
        """Give every round with its outcome and report, oldest first."""
        column = tables.rounds.c
        with self._transaction() as connection:
            query = select(column.round, column.start_release, column.outcome, column.reason, column.report)
            rows = connection.execute(query.order_by(column.round)).mappings().all()
        return [{**row, "report": json.loads(row["report"])} for row in rows]

    # --- updates and verdicts ----------------------------------------------------------------------------------

    def add_update(self, row: UpdateRow, *, accepted: int) -> bool:
        """Count an update, once a device a round.

        Returns:
            False where this device already counts in this round.
        """
        try:
            with self._transaction() as connection:
                connection.execute(insert(tables.updates).values({**asdict(row), "accepted": accepted}))
        except IntegrityError:
            return False
        return True

    def updates(self, number: int | None = None) -> list[UpdateRow]:
        """Give the updates that count, of one round or of all, in order of round and device."""
        column = tables.updates.c
        query = select(tables.updates).order_by(column.round, column.device)
        if number is not None:
            query = query.where(column.round == number)
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [UpdateRow(**{key: row[key] for key in UpdateRow.__dataclass_fields__}) for row in rows]

    def add_refusal(self, *, number: int, device: str, transfer: str, reason: str, message: str) -> None:
        """Remember that an update was refused, and why."""
        values = {
            "round": number,
            "device": device,
            "transfer": transfer,
            "reason": reason,
            "message": message,
            "at": int(time.time()),
        }
        with self._transaction() as connection:
            connection.execute(insert(tables.refusals).values(values))

    def settlement(self, device: str, transfer: str) -> tuple[str, str] | None:
        """Say what became of a device's transfer: ``("", "")`` counted, (reason, message) refused, none where open."""
        column = tables.updates.c
        counted = select(column.update_id).where(column.transfer == transfer, column.device == device)
        said = tables.refusals.c
        refused = select(said.reason, said.message).where(said.transfer == transfer, said.device == device)
        refused = refused.order_by(said.id)
        with self._transaction() as connection:
            if connection.execute(counted).first() is not None:
                return ("", "")
            row = connection.execute(refused).first()
        return None if row is None else (row.reason, row.message)

    def refusals(self) -> list[dict[str, Any]]:
        """Give every refusal, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute(select(tables.refusals).order_by(tables.refusals.c.id)).mappings().all()
        return [dict(row) for row in rows]

    def add_verdict(self, verdict: Judgement, *, candidate: str, number: int) -> None:
        """Keep a device's verdict on a candidate; the first one counts."""
        values = {"candidate": candidate, "round": number, **asdict(verdict)}
        try:
            with self._transaction() as connection:
                connection.execute(insert(tables.verdicts).values(values))
        except IntegrityError:
            return

    def verdicts(self, candidate: str) -> dict[str, Judgement]:
        """Give the verdicts on a candidate, by device."""
        column = tables.verdicts.c
        query = select(column.device, column.before, column.after, column.targets).where(column.candidate == candidate)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(column.device)).mappings().all()
        return {row["device"]: Judgement(**row) for row in rows}

    # --- releases ----------------------------------------------------------------------------------------------

    def add_release(self, release: ReleaseRow) -> None:
        """Keep release 0."""
        with self._transaction() as connection:
            _insert_release(connection, release)

    def save_candidate(self, release: ReleaseRow, state: RoundState, *, report: dict[str, Any], carry: bytes) -> None:
        """End a merge: the candidate, what it left over, and the trial begin; the round's key is forgotten."""
        with self._transaction() as connection:
            _insert_release(connection, release)
            values = {"seal_seed": b"", "report": json.dumps(report)}
            connection.execute(update(tables.rounds).where(tables.rounds.c.round == state.number).values(values))
            _set_fact(connection, "carry-candidate", carry)
            _set_fact(connection, "round", json.dumps(asdict(state)).encode())

    def end_round(self, number: int, *, candidate: str, promote: bool, reason: str) -> None:
        """Promote the candidate, or reject it and change nothing else."""
        outcome = "promoted" if promote else "rejected"
        with self._transaction() as connection:
            where = tables.releases.c.sha256 == candidate
            connection.execute(update(tables.releases).where(where).values(state=outcome))
            values = {"outcome": outcome, "reason": reason, "seal_seed": b""}
            connection.execute(update(tables.rounds).where(tables.rounds.c.round == number).values(values))
            if promote:
                _set_fact(connection, "carry", _fact(connection, "carry-candidate") or b"")
            connection.execute(delete(tables.facts).where(tables.facts.c.key == "carry-candidate"))

    def round_outcome(self, number: int) -> str | None:
        """Give ``running``, ``promoted`` or ``rejected``; none where there is no such round."""
        with self._transaction() as connection:
            return connection.execute(select(tables.rounds.c.outcome).where(tables.rounds.c.round == number)).scalar()

    def release(self, sha256: str) -> ReleaseRow | None:
        """Give one adapter by its hash."""
        with self._transaction() as connection:
            row = connection.execute(select(tables.releases).where(tables.releases.c.sha256 == sha256)).first()
        return None if row is None else _release(row)

    def releases(self) -> list[ReleaseRow]:
        """Give everything promoted, oldest first."""
        return list(self._releases("promoted"))

    def candidate(self, number: int) -> ReleaseRow | None:
        """Give the candidate that is on trial in a round."""
        found = [row for row in self._releases("candidate") if row.manifest.round == number]
        return found[-1] if found else None

    def _releases(self, state: str) -> Sequence[ReleaseRow]:
        column = tables.releases.c
        query = select(tables.releases).where(column.state == state).order_by(column.number)
        with self._transaction() as connection:
            return [_release(row) for row in connection.execute(query).all()]

    def counts(self) -> dict[str, int]:
        """Give how many rows the tables hold, for `bramble hub status`."""
        counted = (tables.devices, tables.updates, tables.refusals, tables.verdicts, tables.releases)
        with self._transaction() as connection:
            return {
                table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for table in counted
            }


def _fact(connection: Connection, key: str) -> bytes | None:
    row = connection.execute(select(tables.facts.c.value).where(tables.facts.c.key == key)).first()
    return None if row is None else bytes(row.value)


def _set_fact(connection: Connection, key: str, value: bytes) -> None:
    changed = connection.execute(update(tables.facts).where(tables.facts.c.key == key).values(value=value))
    if changed.rowcount == 0:
        connection.execute(insert(tables.facts).values(key=key, value=value))


def _device(row: Row[Any]) -> DeviceRow:
    return DeviceRow(
        device=row.device,
        public=PublicIdentity.decode(bytes(row.public)),
        nickname=row.nickname,
        joined=row.joined,
        replay=ReplayWindow.from_bytes(bytes(row.replay)),
    )


def _insert_release(connection: Connection, release: ReleaseRow) -> None:
    manifest = release.manifest
    values = {
        "sha256": manifest.sha256,
        "number": manifest.number,
        "round": manifest.round,
        "parent": manifest.parent,
        "size": manifest.size,
        "content_key": release.content_key,
        "state": release.state,
        "created": int(time.time()),
        "updates": json.dumps(release.updates),
    }
    # The very same adapter may have been a candidate before, and was rejected: it gets another trial.
    connection.execute(delete(tables.releases).where(tables.releases.c.sha256 == manifest.sha256))
    connection.execute(insert(tables.releases).values(values))


def _release(row: Row[Any]) -> ReleaseRow:
    manifest = Manifest(number=row.number, sha256=row.sha256, parent=row.parent, size=row.size, round=row.round)
    return ReleaseRow(
        manifest=manifest,
        content_key=bytes(row.content_key),
        state=row.state,
        updates=tuple(json.loads(row.updates)),
    )


def create_store(home: Home, *, url: str | None = None) -> HubStore:
    """Make the tables of a new hub."""
    store = HubStore(_engine(home, url), home=home)
    try:
        store.create_tables()
    except BaseException:
        store.close()
        raise
    return store


def open_store(home: Home, *, url: str | None = None) -> HubStore:
    """Open a hub's database.

    Raises:
        NotInitialisedError: there is none.
        StateError: it was written by a newer version.
    """
    if url is None and not Path(home.database).is_file():
        raise NotInitialisedError(
            f"there is no hub in {home.root}", advice="Create one with `bramble hub init`, or pass --home."
        )
    store = HubStore(_engine(home, url), home=home)
    try:
        version = int(store.fact("schema") or b"0")
    except BaseException:
        store.close()
        raise
    if version != tables.SCHEMA_VERSION:
        store.close()
        raise StateError(
            f"{home.database} has schema {version}, this version of Bramble knows {tables.SCHEMA_VERSION}",
            advice="Use the version of Bramble that wrote it, or a newer one.",
        )
    return store
