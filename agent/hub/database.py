"""The hub's database: connections, transactions, and facts. What the facts and rows mean is said in the books.

A method that changes something is one transaction; called inside :meth:`Database.transaction` it is part of that one.
Writers take the database for themselves from the beginning, so that what was read inside a transaction is still so when
it commits, whatever other process (`bramble hub rollback`) changes the same database.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from agent.errors import CorruptStateError, DiskFullError, StateError
from agent.hub import tables
from agent.paths import Home, out_of_room

COUNTER_BLOCK = 1000
"""Message counters that are taken from the disk together; what is left of them when the hub dies is never used."""


def _pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.execute("PRAGMA secure_delete=ON")  # a round's key that was forgotten is gone from the file too
    cursor.close()


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def make_engine(home: Home, url: str | None) -> Engine:
    """Give the engine of a hub's database, which need not exist yet."""
    if url is not None and not url.startswith("sqlite"):
        return create_engine(url, isolation_level="SERIALIZABLE")
    engine = create_engine(url or f"sqlite:///{home.database}")
    event.listen(engine, "connect", _pragmas)
    event.listen(engine, "begin", _begin)
    return engine


class DatabaseRefusedError(StateError):
    """The database would not work at the moment, for instance because another program holds it; nothing was changed."""


class Database:
    """A hub's database and its facts. A context manager."""

    def __init__(self, engine: Engine, *, home: Home) -> None:
        self._engine = engine
        self._own = threading.local()
        self._next_counter = self._reserved = 0
        self.home = home

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make changes that count together or not at all; within another transaction of this thread, a part of it."""
        outer: Connection | None = getattr(self._own, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._explained(), self._engine.connect() as connection:
            connection.execution_options(writing=True)
            with connection.begin():
                self._own.connection = connection
                try:
                    yield connection
                finally:
                    self._own.connection = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo, inside a transaction, what the block changed when it raises; what was changed before it stays."""
        with self.transaction() as connection, connection.begin_nested():
            yield

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read one state of the database, without waiting for writers; this thread's transaction, if there is one."""
        outer: Connection | None = getattr(self._own, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except OperationalError as cause:
            if "full" in str(cause.orig) or out_of_room(self.home.root):
                raise DiskFullError(
                    f"no room on the disk for {self.home.database}",
                    advice="Free some space and start the hub again: what was committed before is kept.",
                ) from cause
            raise DatabaseRefusedError(
                f"the hub's database refused to work: {cause.orig}", advice="Check the disk, then start the hub again."
            ) from cause
        except DatabaseError as cause:
            raise CorruptStateError(
                f"{self.home.database} is no valid database: {cause.orig}",
                advice="Restore it from a backup; a round that was open then is asked for again.",
            ) from cause

    def create_tables(self) -> None:
        """Make the tables of a new hub."""
        with self.transaction() as connection:
            tables.metadata.create_all(connection)
            set_fact(connection, "schema", str(tables.SCHEMA_VERSION).encode())

    def fact(self, key: str) -> bytes | None:
        """Give one fact."""
        with self.reading() as connection:
            return get_fact(connection, key)

    def set_fact(self, key: str, value: bytes) -> None:
        """Keep one fact."""
        with self.transaction() as connection:
            set_fact(connection, key, value)

    def gaps(self) -> list[tuple[int, int]]:
        """Give the sequences between which no announcement is remembered, one pair for each start, oldest first."""
        return [(before, after) for before, after in json.loads(self.fact("gaps") or b"[]")]

    def save_gaps(self, gaps: list[tuple[int, int]]) -> None:
        """Keep the gaps between announcements."""
        self.set_fact("gaps", json.dumps(gaps).encode())

    def next_number(self, key: str) -> int:
        """Give the next value of a durable counter that never goes back, not even with a backup that was restored."""
        with self.transaction() as connection:
            return _advance(connection, key, 1)

    def next_counter(self) -> int:
        """Give the counter of the next message: as durable as :meth:`next_number`, for one commit in a thousand."""
        if self._next_counter >= self._reserved:
            with self.transaction() as connection:
                self._reserved = _advance(connection, "counter", COUNTER_BLOCK) + 1
            self._next_counter = self._reserved - COUNTER_BLOCK
        self._next_counter += 1
        return self._next_counter - 1


def _advance(connection: Connection, key: str, by: int) -> int:
    """Move a counter forward by so many, and to the clock's milliseconds at least; give the last value it covers."""
    stored = int.from_bytes(get_fact(connection, key) or b"", "big")
    value = max(stored + 1, time.time_ns() // 1_000_000) + by - 1
    set_fact(connection, key, value.to_bytes(8, "big"))
    return value


def get_fact(connection: Connection, key: str) -> bytes | None:
    """Give one fact, inside a transaction."""
    row = connection.execute(select(tables.facts.c.value).where(tables.facts.c.key == key)).first()
    return None if row is None else bytes(row.value)


def set_fact(connection: Connection, key: str, value: bytes) -> None:
    """Keep one fact, inside a transaction."""
    changed = connection.execute(update(tables.facts).where(tables.facts.c.key == key).values(value=value))
    if changed.rowcount == 0:
        connection.execute(insert(tables.facts).values(key=key, value=value))
