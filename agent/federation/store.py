"""What a device remembers: one SQLite file, schema versioned, safe against being killed at any instruction."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from agent.crypto import canonical
from agent.crypto.identity import PublicIdentity
from agent.data import consent
from agent.errors import CorruptStateError, DiskFullError, NotInitialisedError, NotJoinedError, StateError
from agent.federation.messages import Announcement, Manifest
from agent.governance.charter import Charter
from agent.paths import Home, out_of_room
from agent.transport import outbox
from agent.transport.outbox import Outbox
from agent.update.delta import Factors

Migration = Callable[[sqlite3.Connection], None]

_OWN_TABLES = (
    "CREATE TABLE facts (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
    """CREATE TABLE releases (
        sha256 TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('adopted', 'declined')),
        before REAL, after REAL,      -- mean held-out loss, nats a token, where it was judged
        at INTEGER NOT NULL           -- Unix time, seconds
    ) STRICT""",
    """CREATE TABLE rounds (
        round INTEGER PRIMARY KEY,
        transfer TEXT NOT NULL,       -- hex id under which the update travels
        update_id TEXT NOT NULL,      -- hex SHA-256 of the update before sealing
        wire_bytes INTEGER NOT NULL, fp32_bytes INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('sending', 'counted', 'refused')),
        reason TEXT NOT NULL,
        report TEXT NOT NULL          -- JSON: steps, tokens, losses
    ) STRICT""",
    """CREATE TABLE verdicts (
        candidate TEXT PRIMARY KEY, round INTEGER NOT NULL, about TEXT NOT NULL,
        before REAL NOT NULL, after REAL NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('sending', 'counted', 'refused'))
    ) STRICT""",
)


def _first_schema(connection: sqlite3.Connection) -> None:
    for statement in (*_OWN_TABLES, *consent.SCHEMA, *outbox.SCHEMA.split(";")):
        connection.execute(statement)


def _residuals(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE residuals (
            factors TEXT PRIMARY KEY,     -- which ones the update trained that left it over
            sha256 TEXT NOT NULL,         -- of the blob: an adapter
            release INTEGER NOT NULL,     -- number of the release that the update started from
            start TEXT NOT NULL,          -- and its hash
            transfer TEXT NOT NULL        -- hex id under which the update travels
        ) STRICT"""
    )


def _moments(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE moments (
            factors TEXT PRIMARY KEY,     -- which ones were trained
            sha256 TEXT NOT NULL          -- of the blob: what the optimiser remembers
        ) STRICT"""
    )


def _residuals_taken_up(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE residuals_before (
            factors TEXT NOT NULL, sha256 TEXT NOT NULL, release INTEGER NOT NULL, start TEXT NOT NULL,
            transfer TEXT NOT NULL,       -- as in residuals
            successor TEXT PRIMARY KEY    -- hex id of the update that took it up, which is not counted yet
        ) STRICT"""
    )


def _roles(connection: sqlite3.Connection) -> None:
    """Public keys say which role they are for: those that were pinned are a hub's."""
    row = connection.execute("SELECT value FROM facts WHERE key = 'membership'").fetchone()
    if row is None:
        return
    membership = json.loads(bytes(row[0]))
    match canonical.decode(base64.urlsafe_b64decode(membership["hub"]), max_bytes=2048):
        case [bytes(verify_key), bytes(seal_key)]:
            encoded = canonical.encode(["hub", verify_key, seal_key])
            membership["hub"] = base64.urlsafe_b64encode(encoded).decode()
            _set_fact(connection, "membership", json.dumps(membership).encode())


MIGRATIONS: Sequence[Migration] = (_first_schema, _residuals, _moments, _residuals_taken_up, _roles)
"""Each takes the schema one version further; ``PRAGMA user_version`` counts them."""


_RESIDUAL = "factors, sha256, release, start, transfer"
"""The columns of what an update left over."""


class Membership(BaseModel):
    """The community a device belongs to.

    Attributes:
        community: hex of the 16-byte id.
        hub: the hub's public keys, encoded, as pinned by the invite.
        door: URL of the broker for newcomers, for a device whose certificate has expired.
        authority: certificate (PEM) that the broker is known by; empty where the system's authorities vouch for it.
        base: the GGUF file on this machine that has the charter's hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    community: str
    broker: str
    allow_plaintext: bool = False
    door: str = ""
    authority: bytes = b""
    hub: bytes
    username: str
    password: str
    base: Path
    charter: Charter
    joined: int

    @property
    def hub_identity(self) -> PublicIdentity:
        """The hub's public keys."""
        return PublicIdentity.decode(self.hub)


class RoundRecord(BaseModel):
    """A device's own part in a round."""

    model_config = ConfigDict(frozen=True)

    round: int
    transfer: str
    update_id: str
    wire_bytes: int
    fp32_bytes: int
    state: Literal["sending", "counted", "refused"] = "sending"
    reason: str = ""
    report: dict[str, float | int | str] = {}


class Residual(BaseModel):
    """What an update left over (:mod:`agent.update.feedback`); it never leaves the device.

    Attributes:
        factors: which ones that update trained. Rounds that train others leave it alone.
        sha256: of the blob that holds it, an adapter.
        release: number of the release that the update started from.
        start: hex SHA-256 of that release's adapter.
        transfer: hex id under which the update travels.
    """

    model_config = ConfigDict(frozen=True)

    factors: Factors
    sha256: str
    release: int
    start: str
    transfer: str

    def precedes(self, release: Manifest) -> bool:
        """Whether the release is the one that the update started from, or a later one; not where the hub went back."""
        return self.start == release.sha256 if self.release == release.number else self.release < release.number


class ReleaseRecord(BaseModel):
    """A release that this device has judged.

    Attributes:
        state: whether it came into use here.
        before: mean held-out loss of the release before it, nats a token, where it was measured.
        after: its own.
        at: Unix time, seconds.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    number: int
    state: Literal["adopted", "declined"]
    before: float | None
    after: float | None
    at: int


class DeviceStore:
    """A device's database. A context manager; see :func:`open_device_store`."""

    def __init__(self, connection: sqlite3.Connection, *, home: Home) -> None:
        self.connection = connection
        self.home = home

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make several changes that count together or not at all."""
        with explained_database(self.home), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection

    # --- facts -------------------------------------------------------------------------------------------------

    def fact(self, key: str) -> bytes | None:
        """Give one fact."""
        with explained_database(self.home):
            row = self.connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_fact(self, key: str, value: bytes) -> None:
        """Keep one fact."""
        with self.transaction():
            self.put_fact(key, value)

    def put_fact(self, key: str, value: bytes) -> None:
        """Keep one fact (call inside :meth:`transaction`)."""
        _set_fact(self.connection, key, value)

    @property
    def membership(self) -> Membership:
        """The community this device belongs to.

        Raises:
            NotJoinedError: none yet.
        """
        raw = self.fact("membership")
        if raw is None:
            raise NotJoinedError(
                f"the device in {self.home.root} belongs to no community yet",
                advice="Join one with `bramble join INVITE`; a hub's operator makes invites with `bramble hub invite`.",
            )
        return Membership.model_validate_json(raw)

    @property
    def is_member(self) -> bool:
        """Whether the device has joined a community."""
        return self.fact("membership") is not None

    def save_membership(self, membership: Membership) -> None:
        """Keep the community this device has joined."""
        self.set_fact("membership", membership.model_dump_json().encode())

    @property
    def announcement(self) -> Announcement | None:
        """The newest word of the hub."""
        raw = self.fact("announcement")
        return None if raw is None else Announcement.decode(raw)

    def save_announcement(self, announcement: Announcement) -> bool:
        """Keep the hub's word, unless a newer one is known already.

        Where it says that the hub lost its memory of the last one, what depends on that is forgotten here too.
        """
        known = self.announcement
        if known is not None and known.sequence >= announcement.sequence:
            return False
        with self.transaction() as connection:
            if known is not None and announcement.forgets(known):
                self._forget_with_the_hub(announcement)
            _set_fact(connection, "announcement", announcement.encode())
        return True

    def _forget_with_the_hub(self, announcement: Announcement) -> None:
        """Forget what the hub does not remember: updates, and what they left over; the release in use may be orphaned.

        A hub that lost its memory gives numbers again, so they no longer say which release came from which. A release
        that is known here by its hash was there before, and what is in use was compared with it.
        """
        self.connection.execute("DELETE FROM rounds WHERE round >= ?", (announcement.round,))
        self._forget_residuals()
        known = {row.sha256 for row in self.releases()}
        if (adopted := self.adopted()) is not None and announcement.release.sha256 not in known:
            _set_fact(self.connection, "orphaned", adopted[1].encode())

    @property
    def orphaned(self) -> str:
        """Hex SHA-256 of a release that the hub may not remember; empty for none."""
        return (self.fact("orphaned") or b"").decode()

    def save_status(self, status: dict[str, object]) -> None:
        """Keep what the daemon does now, for `bramble status`."""
        self.set_fact("status", json.dumps(status).encode())

    @property
    def status(self) -> dict[str, object]:
        """What the daemon last said it does."""
        raw = self.fact("status")
        found: dict[str, object] = json.loads(raw) if raw else {}
        return found

    # --- releases ----------------------------------------------------------------------------------------------

    def adopted(self) -> tuple[int, str] | None:
        """Number and hash of the release in use."""
        query = "SELECT number, sha256 FROM releases WHERE state = 'adopted' ORDER BY rowid DESC LIMIT 1"
        with explained_database(self.home):
            row = self.connection.execute(query).fetchone()
        return None if row is None else (int(row[0]), str(row[1]))

    def releases(self) -> list[ReleaseRecord]:
        """Give every release that was adopted or declined here, oldest first."""
        with explained_database(self.home):
            rows = self.connection.execute(
                "SELECT sha256, number, state, before, after, at FROM releases ORDER BY rowid"
            ).fetchall()
        names = ("sha256", "number", "state", "before", "after", "at")
        return [ReleaseRecord.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def declined(self) -> frozenset[str]:
        """Hashes of the releases that were worse here."""
        with explained_database(self.home):
            rows = self.connection.execute("SELECT sha256 FROM releases WHERE state = 'declined'").fetchall()
        return frozenset(str(row[0]) for row in rows)

    def save_release(
        self, manifest: Manifest, *, adopt: bool, before: float | None = None, after: float | None = None
    ) -> None:
        """Take a release into use, or remember that it was not."""
        state = "adopted" if adopt else "declined"
        values = (manifest.sha256, manifest.number, state, before, after, int(time.time()))
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?, ?, ?)", values)

    # --- rounds and verdicts -----------------------------------------------------------------------------------

    def add_round(self, record: RoundRecord) -> None:
        """Remember an update in the same transaction that queues it (call inside :meth:`transaction`)."""
        values = (
            record.round,
            record.transfer,
            record.update_id,
            record.wire_bytes,
            record.fp32_bytes,
            record.state,
            record.reason,
            json.dumps(record.report),
        )
        self.connection.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def rounds(self) -> list[RoundRecord]:
        """Give every round this device took part in, oldest first."""
        with explained_database(self.home):
            rows = self.connection.execute("SELECT * FROM rounds ORDER BY round").fetchall()
        names = ("round", "transfer", "update_id", "wire_bytes", "fp32_bytes", "state", "reason", "report")
        return [
            RoundRecord.model_validate({**dict(zip(names, row, strict=True)), "report": json.loads(row[-1])})
            for row in rows
        ]

    def last_round(self) -> int:
        """The last round an update was made for; 0 for none."""
        with explained_database(self.home):
            return int(self.connection.execute("SELECT COALESCE(MAX(round), 0) FROM rounds").fetchone()[0])

    def residual(self, factors: Factors) -> Residual | None:
        """Give what the last update that trained these factors left over, unless the hub refused that update."""
        query = f"SELECT {_RESIDUAL} FROM residuals WHERE factors = ?"  # noqa: S608 (ours)
        with explained_database(self.home):
            row = self.connection.execute(query, (factors,)).fetchone()
        return None if row is None else Residual.model_validate(dict(zip(_RESIDUAL.split(", "), row, strict=True)))

    def kept_blobs(self) -> frozenset[str]:
        """Hashes of the blobs that later rounds go on with, or may: what is or was left over, and moments."""
        tables = ("residuals", "residuals_before", "moments")
        query = " UNION ".join(f"SELECT sha256 FROM {table}" for table in tables)  # noqa: S608 (ours)
        with explained_database(self.home):
            rows = self.connection.execute(query).fetchall()
        return frozenset(str(row[0]) for row in rows)

    def replace_residual(self, factors: Factors, residual: Residual | None, transfer: str) -> None:
        """Put what an update left over in the place of what it took up, in the transaction that queues the update.

        So the old one is added to exactly one update, wherever the device is killed: before, it is still there and
        nothing is queued; after, it is part of what is queued, and comes back only if that is refused
        (call inside :meth:`transaction`).

        Args:
            factors: which ones the update trained.
            residual: what it left over, if anything.
            transfer: hex id under which the update travels.
        """
        self.connection.execute(
            f"INSERT INTO residuals_before SELECT {_RESIDUAL}, ? FROM residuals WHERE factors = ?",  # noqa: S608 (ours)
            (transfer, factors),
        )
        self.connection.execute("DELETE FROM residuals WHERE factors = ?", (factors,))
        if residual is not None:
            values = (residual.factors, residual.sha256, residual.release, residual.start, residual.transfer)
            self.connection.execute("INSERT INTO residuals VALUES (?, ?, ?, ?, ?)", values)

    def moments(self, factors: Factors) -> str | None:
        """Give the blob with the moments of the last training of these factors (:mod:`agent.training.moments`)."""
        with explained_database(self.home):
            row = self.connection.execute("SELECT sha256 FROM moments WHERE factors = ?", (factors,)).fetchone()
        return None if row is None else str(row[0])

    def replace_moments(self, factors: Factors, sha256: str | None) -> None:
        """Remember the blob with these factors' moments, or that there is none (call inside :meth:`transaction`)."""
        self.connection.execute("DELETE FROM moments WHERE factors = ?", (factors,))
        if sha256 is not None:
            self.connection.execute("INSERT INTO moments VALUES (?, ?)", (factors, sha256))

    def add_verdict(self, candidate: str, *, number: int, about: bytes, before: float, after: float) -> None:
        """Remember a verdict in the same transaction that queues it (call inside :meth:`transaction`)."""
        values = (candidate, number, about.hex(), before, after, "sending")
        self.connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", values)

    def judged(self) -> dict[str, tuple[float, float]]:
        """Loss before and after of every candidate judged here, by hash."""
        with explained_database(self.home):
            rows = self.connection.execute("SELECT candidate, before, after FROM verdicts").fetchall()
        return {str(row[0]): (float(row[1]), float(row[2])) for row in rows}

    def withdraw_unsent(self, reason: str = "consent-withdrawn") -> None:
        """Take every update that the hub has not counted yet out of the outbox (call inside :meth:`transaction`).

        What updates left over and the optimiser's moments come from the same text, so they are forgotten too.
        """
        self.forget_training()
        waiting = Outbox(self.connection)
        for record in self.rounds():
            if record.state == "sending":
                waiting.done_transfer(record.transfer)
                self.settle(bytes.fromhex(record.transfer), state="refused", reason=reason)

    def forget_training(self) -> None:
        """Forget what updates left over, and the optimiser's moments (call inside :meth:`transaction`)."""
        self._forget_residuals()
        self.connection.execute("DELETE FROM moments")

    def settle(self, about: bytes, *, state: Literal["counted", "refused"], reason: str = "") -> None:
        """Write down what the hub said of an update or a verdict (call inside :meth:`transaction`).

        What a refused update left over is forgotten: it is what remains once the rest was merged, and it was not. What
        it had taken up is there again. Once it is counted, that is forgotten.
        """
        if state == "counted":
            self.connection.execute("DELETE FROM residuals_before WHERE successor = ?", (about.hex(),))
        else:
            self._restore_residual(about.hex())
        self.connection.execute(
            "UPDATE rounds SET state = ?, reason = ? WHERE transfer = ?", (state, reason, about.hex())
        )
        self.connection.execute("UPDATE verdicts SET state = ? WHERE about = ?", (state, about.hex()))

    def _restore_residual(self, refused: str) -> None:
        """Forget what a refused update left over, and put what it had taken up in the place of that.

        If a later update has taken up what is forgotten, that place is before it: there again if it is refused too.
        """
        self.connection.execute("DELETE FROM residuals WHERE transfer = ?", (refused,))
        query = "SELECT successor FROM residuals_before WHERE transfer = ?"
        later = self.connection.execute(query, (refused,)).fetchone()
        if later is not None:
            self.connection.execute("DELETE FROM residuals_before WHERE transfer = ?", (refused,))
            move = "UPDATE residuals_before SET successor = ? WHERE successor = ?"
            self.connection.execute(move, (later[0], refused))
            return
        back = f"INSERT OR IGNORE INTO residuals SELECT {_RESIDUAL} FROM residuals_before WHERE successor = ?"  # noqa: S608
        self.connection.execute(back, (refused,))
        self.connection.execute("DELETE FROM residuals_before WHERE successor = ?", (refused,))

    def _forget_residuals(self) -> None:
        self.connection.execute("DELETE FROM residuals")
        self.connection.execute("DELETE FROM residuals_before")


def _set_fact(connection: sqlite3.Connection, key: str, value: bytes) -> None:
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))


@contextmanager
def explained_database(home: Home) -> Iterator[None]:
    """Turn SQLite's complaints into errors with advice.

    Raises:
        DiskFullError: there is no room.
        CorruptStateError: the file is no database any more.
        StateError: anything else.
    """
    try:
        yield
    except sqlite3.OperationalError as cause:
        if "full" in str(cause) or out_of_room(home.root):
            raise DiskFullError(
                f"no room on the disk for {home.database}",
                advice="Free some space and start again: what was committed before is kept.",
            ) from cause
        raise StateError(
            f"{home.database} refused to work: {cause}", advice="Check the disk and its permissions, then start again."
        ) from cause
    except sqlite3.DatabaseError as cause:
        raise CorruptStateError(
            f"{home.database} is no valid database: {cause}",
            advice="Restore it from a backup, or remove it and join the community again.",
        ) from cause


def open_device_store(home: Home, *, create: bool = False) -> DeviceStore:
    """Open a device's database, bringing an older schema up to date.

    Raises:
        NotInitialisedError: there is none and ``create`` is false.
        StateError: it was written by a newer version.
    """
    if not create and not home.database.is_file():
        raise NotInitialisedError(
            f"there is no device in {home.root}", advice="Create one with `bramble init`, or pass --home."
        )
    with explained_database(home):
        connection = sqlite3.connect(home.database, isolation_level=None, timeout=10)
        try:
            _bring_up_to_date(connection, home)
        except BaseException:
            connection.close()
            raise
    home.database.chmod(0o600)
    return DeviceStore(connection, home=home)


def _bring_up_to_date(connection: sqlite3.Connection, home: Home) -> None:
    """Set the connection up and run the migrations that are still to run, each in its own transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise StateError(
            f"{home.database} has schema {version}, this version of Bramble knows {len(MIGRATIONS)}",
            advice="Use the version of Bramble that wrote it, or a newer one.",
        )
    for number in range(version, len(MIGRATIONS)):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            MIGRATIONS[number](connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
