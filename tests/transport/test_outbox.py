from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import DiskFullError, OutboxFullError
from agent.transport.outbox import COUNTER_BLOCK, NewItem, Outbox


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "device.db")
    yield opened
    opened.close()


@pytest.fixture
def outbox(connection: sqlite3.Connection) -> Outbox:
    made = Outbox(connection)
    made.prepare()
    return made


def parts(transfer: str, count: int) -> list[NewItem]:
    return [NewItem(kind="chunk", topic="t", body=bytes([n]), transfer=transfer, index=n) for n in range(count)]


def test_what_is_put_stays_in_order_until_it_is_done(outbox: Outbox) -> None:
    first = outbox.put("offer", b"one", topic="a")
    second = outbox.put("report", b"two", topic="b")
    assert [(item.id, item.kind, item.topic, item.body) for item in outbox.pending(10)] == [
        (first, "offer", "a", b"one"),
        (second, "report", "b", b"two"),
    ]
    assert [item.id for item in outbox.pending(10, after=first)] == [second]
    assert [item.id for item in outbox.pending(1)] == [first]
    assert outbox.done(first)
    assert not outbox.done(first)
    assert [item.id for item in outbox.pending(10)] == [second]
    assert (outbox.count, outbox.size) == (1, 3)


def test_a_receipt_lets_go_of_all_parts_but_the_missing_ones(outbox: Outbox) -> None:
    outbox.put_many(parts("aa", 5) + parts("bb", 2))
    assert outbox.done_transfer("aa", except_missing=[1, 3]) == 3
    assert [(item.transfer, item.index) for item in outbox.pending(10)] == [("aa", 1), ("aa", 3), ("bb", 0), ("bb", 1)]
    assert outbox.done_transfer("aa") == 2
    assert outbox.done_transfer("aa") == 0


def test_putting_a_part_again_changes_nothing(outbox: Outbox) -> None:
    identifiers = outbox.put_many(parts("aa", 3))
    assert outbox.put_many(parts("aa", 4))[:3] == identifiers
    assert outbox.count == 4


def test_ids_are_never_used_twice(outbox: Outbox) -> None:
    first = outbox.put("x", b"", topic="t")
    outbox.done(first)
    assert outbox.put("x", b"", topic="t") > first


def test_what_does_not_fit_is_refused_whole_and_the_rest_is_kept(connection: sqlite3.Connection) -> None:
    outbox = Outbox(connection, max_items=3, max_bytes=10)
    outbox.prepare()
    kept = outbox.put("x", b"12345", topic="t")
    for too_much in (parts("aa", 3), [NewItem(kind="x", topic="t", body=bytes(6))]):
        with pytest.raises(OutboxFullError) as caught:
            outbox.put_many(too_much)
        assert caught.value.advice
    assert [item.id for item in outbox.pending(10)] == [kept]


def test_it_takes_part_in_the_callers_transaction(connection: sqlite3.Connection, outbox: Outbox) -> None:
    connection.execute("CREATE TABLE other (x)")
    connection.execute("INSERT INTO other VALUES (1)")
    outbox.put("x", b"", topic="t")
    connection.rollback()
    assert outbox.count == 0
    connection.execute("INSERT INTO other VALUES (1)")
    outbox.put("x", b"", topic="t")
    connection.commit()
    assert outbox.count == 1


def test_counters_grow_over_restarts_and_only_skip(connection: sqlite3.Connection, outbox: Outbox) -> None:
    given = [outbox.allocate_counter() for _ in range(COUNTER_BLOCK + 3)]
    assert given == list(range(given[0], given[0] + COUNTER_BLOCK + 3))
    assert given[0] > 10**12  # not below the clock: a restored backup must not give again what it gave since
    restarted = Outbox(connection)
    restarted.prepare()
    assert restarted.allocate_counter() >= given[0] + 2 * COUNTER_BLOCK
    connection.execute("BEGIN")
    with pytest.raises(RuntimeError, match="rolled-back"):
        restarted.allocate_counter()
    connection.rollback()


def test_counters_grow_whatever_the_clock_does(
    connection: sqlite3.Connection, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1970, a century ahead, and back: no number twice, and none that is smaller than one before."""
    given = []
    for milliseconds in (0, 1_700_000_000_000, 5_000_000_000_000, 1_700_000_000_000, 0):
        monkeypatch.setattr("time.time_ns", lambda at=milliseconds: at * 1_000_000)
        given += [outbox.allocate_counter() for _ in range(COUNTER_BLOCK + 1)]
        outbox = Outbox(connection)  # a restart
        given += [outbox.allocate_counter() for _ in range(3)]
    assert given == sorted(set(given))


def test_a_clock_that_is_put_right_after_the_start_lifts_counters_over_those_of_a_lost_database(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert outbox.allocate_counter() < 10
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000 * 1_000_000)
    assert max(outbox.allocate_counter() for _ in range(COUNTER_BLOCK)) >= 1_700_000_000_000


def test_a_full_disk_is_said_so_and_loses_nothing(connection: sqlite3.Connection, outbox: Outbox) -> None:
    kept = outbox.put("x", b"kept", topic="t")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFullError):
        outbox.put("x", bytes(1 << 20), topic="t")
    assert not connection.in_transaction
    assert [item.id for item in outbox.pending(10)] == [kept]


KILLED = """
import os, signal, sqlite3, sys
from agent.transport.outbox import NewItem, Outbox
connection = sqlite3.connect(sys.argv[1])
outbox = Outbox(connection)
outbox.prepare()
for number in range(20):
    outbox.put("update", str(number).encode(), topic="t")
counter = outbox.allocate_counter()
for number in range(5):
    outbox.done(number + 1)
connection.execute("BEGIN")
outbox.put("update", b"never committed", topic="t")
print(counter, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_nothing_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    connection = sqlite3.connect(path)
    outbox = Outbox(connection)
    outbox.prepare()
    assert [int(item.body) for item in outbox.pending(100)] == list(range(5, 20))
    assert outbox.allocate_counter() > int(killed.stdout)
    connection.close()
