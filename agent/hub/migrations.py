"""Older databases brought up to date: each migration takes the schema one version further, in one transaction.

A migration is history: it says what the tables were and became in its own words, and is never changed when they change
again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, text

from agent.crypto import canonical
from agent.errors import CorruptStateError, StateError
from agent.hub import tables
from agent.hub.database import Database, get_fact, set_fact
from agent.paths import BlobStore, exclusive

Migration = Callable[[Connection, BlobStore], None]

_TO_SECOND = (
    "ALTER TABLE rounds ADD COLUMN draw BIGINT",
    "ALTER TABLE rounds ADD COLUMN opened BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE rounds ADD COLUMN ended BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE updates ADD COLUMN start VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE updates ADD COLUMN merge INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE updates ADD COLUMN state VARCHAR(16) NOT NULL DEFAULT 'merged'",
    "CREATE INDEX updates_of_a_merge ON updates (merge, state)",
    "CREATE INDEX updates_by_transfer ON updates (transfer)",
    "CREATE INDEX refusals_by_transfer ON refusals (transfer)",
    "CREATE INDEX refusals_of_a_round ON refusals (round)",
    "ALTER TABLE releases ADD COLUMN carry VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE releases ADD COLUMN kept INTEGER NOT NULL DEFAULT 1",
    """CREATE TABLE acts (
        id INTEGER NOT NULL PRIMARY KEY,
        at BIGINT NOT NULL,
        act VARCHAR(32) NOT NULL,
        operator VARCHAR(64) NOT NULL,
        details TEXT NOT NULL
    )""",
    # Every update counted in its own round. While its key was there, the round was not merged yet.
    """UPDATE updates SET merge = round, start = COALESCE((
        SELECT releases.sha256 FROM rounds JOIN releases ON releases.number = rounds.start_release
        WHERE rounds.round = updates.round AND releases.state = 'promoted'), '')""",
    """UPDATE updates SET state = 'waiting' WHERE round IN (
        SELECT round FROM rounds WHERE outcome = 'running' AND length(seal_seed) > 0)""",
)


def _second_schema(connection: Connection, blobs: BlobStore) -> None:
    """Late updates, draws, rollback; each release's carry moves from the facts to a blob beside it."""
    for statement in _TO_SECOND:
        connection.execute(text(statement))
    newest = "(SELECT max(number) FROM releases WHERE state = 'promoted')"
    for key, where in (
        ("carry", f"state = 'promoted' AND number = {newest}"),
        ("carry-candidate", "state = 'candidate'"),
    ):
        carry = get_fact(connection, key)
        if carry:
            values = {"carry": blobs.put(carry)}
            connection.execute(text(f"UPDATE releases SET carry = :carry WHERE {where}"), values)  # noqa: S608 (ours)
        connection.execute(text("DELETE FROM facts WHERE key = :key"), {"key": key})
    raw = get_fact(connection, "round")
    if raw is not None:  # a round that had ended when the hub was stopped said so in its row only
        state = json.loads(raw)
        query = text("SELECT outcome FROM rounds WHERE round = :round")
        outcome = connection.execute(query, {"round": state["number"]}).scalar()
        if state["phase"] in {"merging", "trial"} and outcome in {"promoted", "rejected"}:
            set_fact(connection, "round", json.dumps({**state, "phase": outcome}).encode())


_TO_THIRD = (
    "ALTER TABLE invites ADD COLUMN uses INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE invites ADD COLUMN member_group VARCHAR(32) NOT NULL DEFAULT ''",
    "ALTER TABLE invites ADD COLUMN taken_back BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE devices ADD COLUMN standing VARCHAR(16) NOT NULL DEFAULT 'member'",
    "ALTER TABLE devices ADD COLUMN member_group VARCHAR(32) NOT NULL DEFAULT ''",
    "ALTER TABLE devices ADD COLUMN changed BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE devices ADD COLUMN reason TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE devices ADD COLUMN successor VARCHAR(64) NOT NULL DEFAULT ''",
    "UPDATE devices SET changed = joined",
    """UPDATE invites SET uses = uses_left + (
        SELECT count(*) FROM devices WHERE devices.invite = invites.invite)""",
)


def _third_schema(connection: Connection, _blobs: BlobStore) -> None:
    """Members have a standing and a group, invites can be taken back; public keys say which role they are for."""
    for statement in _TO_THIRD:
        connection.execute(text(statement))
    for device, public in connection.execute(text("SELECT device, public FROM devices")).all():
        values = {"device": device, "public": canonical.encode(["device", *_keys(bytes(public))])}
        connection.execute(text("UPDATE devices SET public = :public WHERE device = :device"), values)


def _keys(public: bytes) -> list[bytes]:
    match canonical.decode(public, max_bytes=2048):
        case [bytes(verify_key), bytes(seal_key)]:
            return [verify_key, seal_key]
        case _:
            raise CorruptStateError("a member's keys cannot be read", advice="Restore the database from a backup.")


def _fourth_schema(connection: Connection, _blobs: BlobStore) -> None:
    """What is held against devices."""
    connection.execute(
        text("""CREATE TABLE conduct (
            device VARCHAR(64) NOT NULL PRIMARY KEY,
            strikes INTEGER NOT NULL,
            since BIGINT NOT NULL,
            times INTEGER NOT NULL,
            until BIGINT NOT NULL,
            reason VARCHAR(64) NOT NULL
        )""")
    )


MIGRATIONS: Mapping[int, Migration] = {1: _second_schema, 2: _third_schema, 3: _fourth_schema}
"""By the version that each begins with."""


def bring_up_to_date(database: Database) -> None:
    """Run the migrations that are still to run.

    Raises:
        StateError: it was written by a newer version.
        AlreadyRunningError: a hub of the older version still runs on it.
    """
    blobs = BlobStore(database.home.blobs)
    while (version := int(database.fact("schema") or b"0")) != tables.SCHEMA_VERSION:
        migration = MIGRATIONS.get(version)
        if migration is None:
            raise StateError(
                f"{database.home.database} has schema {version}, this version of Bramble knows {tables.SCHEMA_VERSION}",
                advice="Use the version of Bramble that wrote it, or a newer one.",
            )
        with exclusive(database.home), database.transaction() as connection:
            if int(get_fact(connection, "schema") or b"0") == version:  # nobody else did it meanwhile
                migration(connection, blobs)
                set_fact(connection, "schema", str(version + 1).encode())
