"""The durable outbox: what was put in here is offered until its receiver says it has it.

It lives in the device's SQLite file. A message is on disk, synced, before ``put`` returns, and it leaves only when the
application says that the receiver has it durably; the broker's acknowledgement is not enough. So a machine that dies at
any instruction sends everything at least once, and the receiver counts it once by its id.

Bounded: when it is full, ``put`` refuses the new and keeps the old: what was promised first is delivered first, and
whoever makes more is told at once. Nothing in here is ever dropped. All calls come from one thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from agent.errors import DiskFullError, OutboxFullError

MAX_ITEMS = 65_536
MAX_BYTES = 512 * 1024 * 1024
COUNTER_BLOCK = 256
"""Counters reserved on disk at once. A crash skips the rest of a block, and never gives one twice."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    transfer TEXT,
    position INTEGER,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS outbox_transfer ON outbox (transfer, position) WHERE transfer IS NOT NULL;
CREATE TABLE IF NOT EXISTS outbox_counter (only INTEGER PRIMARY KEY CHECK (only = 1), next INTEGER NOT NULL);
INSERT OR IGNORE INTO outbox_counter (only, next) VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """A message to be kept until its receiver has it."""

    kind: str
    topic: str
    body: bytes
    transfer: str | None = None
    """The transfer it is a part of."""
    index: int | None = None
    """Which part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(NewItem):
    """A message in the outbox."""

    id: int
    """Grows in the order of putting; never used twice."""


class Outbox:
    """Messages that are owed to somebody.

    Args:
        connection: the device's database; this outbox shares it with others of the same thread.
        max_items: messages at most.
        max_bytes: bytes of bodies at most.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._connection = connection
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._next_counter = 0
        self._reserved = 0  # counters below this are ours to give

    def prepare(self) -> None:
        """Make the tables if they are not there, and have every commit reach the disk before it returns."""
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        with _disk_errors():
            self._connection.executescript(SCHEMA)

    # -- messages -----------------------------------------------------------------------------------------------------

    def put(self, kind: str, body: bytes, *, topic: str, transfer: str | None = None, index: int | None = None) -> int:
        """Keep one message; gives its id. See ``put_many``."""
        return self.put_many([NewItem(kind=kind, topic=topic, body=body, transfer=transfer, index=index)])[0]

    def put_many(self, items: Iterable[NewItem]) -> list[int]:
        """Keep messages, all or none; gives their ids. A part that is there already keeps its place and its body.

        Inside a transaction of the caller they become durable with it, otherwise before this returns.

        Raises:
            OutboxFullError: they do not fit.
            DiskFullError: the disk is full.
        """
        with self._transaction():
            identifiers = [self._insert(item) for item in items]
            count, size = self._totals()
            if count > self._max_items or size > self._max_bytes:
                raise OutboxFullError(
                    f"The outbox is full: {count} messages of {size} bytes would be waiting to be sent.",
                    advice="It empties once the hub can be reached. What is in it is kept; the new message is not.",
                )
        return identifiers

    def pending(self, limit: int, *, after: int = 0) -> list[Item]:
        """Give up to ``limit`` messages with ids above ``after``, in the order of putting."""
        rows = self._connection.execute(
            "SELECT id, kind, topic, transfer, position, body FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [
            Item(id=identifier, kind=kind, topic=topic, transfer=transfer, index=index, body=body)
            for identifier, kind, topic, transfer, index, body in rows
        ]

    def openings(self) -> list[Item]:
        """Give what is not a part of a transfer (messages, and offers of transfers), in the order of putting."""
        rows = self._connection.execute(
            "SELECT id, kind, topic, transfer, body FROM outbox WHERE position IS NULL ORDER BY id"
        )
        return [
            Item(id=identifier, kind=kind, topic=topic, transfer=transfer, body=body)
            for identifier, kind, topic, transfer, body in rows
        ]

    def part(self, transfer: str, index: int) -> Item | None:
        """Give one part of a transfer, or None where it is not here (any more)."""
        row = self._connection.execute(
            "SELECT id, kind, topic, body FROM outbox WHERE transfer = ? AND position = ?", (transfer, index)
        ).fetchone()
        if row is None:
            return None
        identifier, kind, topic, body = row
        return Item(id=identifier, kind=kind, topic=topic, transfer=transfer, index=index, body=body)

    def parts(self, transfer: str) -> frozenset[int]:
        """Give the indices of the parts of a transfer that are here."""
        rows = self._connection.execute(
            "SELECT position FROM outbox WHERE transfer = ? AND position IS NOT NULL", (transfer,)
        )
        return frozenset(index for (index,) in rows)

    def done(self, identifier: int) -> bool:
        """The receiver has this message; False if it was not here (any more)."""
        with self._transaction():
            return self._connection.execute("DELETE FROM outbox WHERE id = ?", (identifier,)).rowcount > 0

    def done_transfer(self, transfer: str, *, except_missing: Collection[int] = ()) -> int:
        """The receiver has these parts of a transfer, but for the missing ones; gives how many left."""
        with self._transaction():
            rows = self._connection.execute("SELECT id, position FROM outbox WHERE transfer = ?", (transfer,))
            missing = frozenset(except_missing)
            gone = [(identifier,) for identifier, position in rows if position not in missing]
            self._connection.executemany("DELETE FROM outbox WHERE id = ?", gone)
        return len(gone)

    def clear(self) -> None:
        """Let go of everything that is owed: the device leaves, and its hub is to count nothing more of it."""
        with self._transaction():
            self._connection.execute("DELETE FROM outbox")

    @property
    def count(self) -> int:
        """Messages waiting."""
        return self._totals()[0]

    @property
    def size(self) -> int:
        """Bytes of bodies waiting."""
        return self._totals()[1]

    # -- counters -----------------------------------------------------------------------------------------------------

    def allocate_counter(self) -> int:
        """Give a number that is larger than any given before, over any crash. Not inside a transaction.

        Raises:
            DiskFullError: the disk is full.
        """
        if self._connection.in_transaction:
            raise RuntimeError("a rolled-back transaction would give counters twice")
        if self._next_counter >= self._reserved:
            with self._transaction():
                (start,) = self._connection.execute("SELECT next FROM outbox_counter").fetchone()
                # A database restored from a backup must not give again what it gave since, not even where the clock was
                # put right only after the start. A clock that went back changes nothing: numbers only grow.
                start = max(start, time.time_ns() // 1_000_000)
                self._connection.execute("UPDATE outbox_counter SET next = ?", (start + COUNTER_BLOCK,))
            self._next_counter, self._reserved = start, start + COUNTER_BLOCK
        counter = self._next_counter
        self._next_counter += 1
        return counter

    # -- within -------------------------------------------------------------------------------------------------------

    def _insert(self, item: NewItem) -> int:
        if item.transfer is not None:
            row = self._connection.execute(
                "SELECT id FROM outbox WHERE transfer = ? AND position = ?", (item.transfer, item.index)
            ).fetchone()
            if row is not None:
                return int(row[0])
        cursor = self._connection.execute(
            "INSERT INTO outbox (kind, topic, transfer, position, body) VALUES (?, ?, ?, ?, ?)",
            (item.kind, item.topic, item.transfer, item.index, item.body),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _totals(self) -> tuple[int, int]:
        count, size = self._connection.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM outbox").fetchone()
        return count, size

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """A savepoint: a transaction of its own, or a part of the caller's."""
        with _disk_errors():
            self._connection.execute("SAVEPOINT outbox")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself rolls back when the disk is full
                    self._connection.execute("ROLLBACK TO outbox")
                    self._connection.execute("RELEASE outbox")
                raise
            self._connection.execute("RELEASE outbox")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise DiskFullError(
            "The disk has no room for a message that must be kept until it is delivered.",
            advice="Free some space; what was kept before is safe.",
        ) from error
