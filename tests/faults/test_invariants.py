"""The checks themselves: each finds what it is there for."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.paths import BlobStore, Home
from tests.faults.child import BEFORE_MERGES
from tests.faults.community import Disks
from tests.faults.invariants import Spoken, breaches
from tests.faults.run import BOUND_SECONDS, Remains, live_through
from tests.faults.test_runs import CALM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * BOUND_SECONDS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_layer: Path) -> Remains:
    """What a run without faults leaves."""
    directory = tmp_path_factory.mktemp("whole")
    return asyncio.run(live_through(replace(CALM, faults=()), directory, base=one_layer))


@dataclass
class Copy:
    """A copy of it that can be spoilt."""

    disks: Disks
    said: list[Spoken]

    def hub(self, statement: str, *values: object) -> None:
        self._execute(self.disks.hub, statement, values)

    def device(self, statement: str, *values: object) -> None:
        self._execute(self.disks.devices["device-0"], statement, values)

    def _execute(self, home: Home, statement: str, values: tuple[object, ...]) -> None:
        with closing(sqlite3.connect(home.database)) as connection, connection:
            assert connection.execute(statement, values).rowcount >= 1

    def found(self) -> str:
        return "; ".join(breaches(self.disks, self.said))


@pytest.fixture
def copy(whole: Remains, tmp_path: Path) -> Copy:
    root = whole.disks.hub.root.parent
    shutil.copytree(root, tmp_path / "copy")
    devices = {name: Home(tmp_path / "copy" / name) for name in whole.disks.devices}
    disks = Disks(hub=Home(tmp_path / "copy" / "hub"), devices=devices, ids=whole.disks.ids)
    return Copy(disks, list(whole.said))


def test_a_run_in_which_nothing_went_wrong_breaks_nothing(copy: Copy) -> None:
    assert copy.found() == ""


def test_a_late_update_that_a_newer_one_took_the_place_of_was_rightly_not_merged(copy: Copy) -> None:
    supersede_by_a_newer_one(copy)
    assert "merged" not in copy.found()
    assert "superseded" not in copy.found()


Spoil = Callable[[Copy], None]


def forget_at_hub(copy: Copy) -> None:
    copy.hub("DELETE FROM updates WHERE device = ?", copy.disks.ids["device-0"])


def lose(copy: Copy) -> None:
    copy.device("UPDATE rounds SET state = 'sending'")


def refuse_silently(copy: Copy) -> None:
    copy.device("UPDATE rounds SET state = 'refused', reason = 'norm'")


def make_up(copy: Copy) -> None:
    copy.device("DELETE FROM rounds")


def merge_twice(copy: Copy) -> None:
    with closing(sqlite3.connect(copy.disks.hub.database)) as connection:
        (updates,) = connection.execute("SELECT updates FROM releases WHERE number = 1").fetchone()
    copy.hub("UPDATE releases SET updates = ? WHERE number = 1", json.dumps(json.loads(updates) * 2))


def leave_out(copy: Copy) -> None:
    with closing(sqlite3.connect(copy.disks.hub.database)) as connection:
        (updates,) = connection.execute("SELECT updates FROM releases WHERE number = 1").fetchone()
    copy.hub("UPDATE releases SET updates = ? WHERE number = 1", json.dumps(json.loads(updates)[:1]))


def supersede_by_nothing(copy: Copy) -> None:
    copy.hub("UPDATE updates SET state = 'superseded' WHERE device = ?", copy.disks.ids["device-0"])


def supersede_by_a_newer_one(copy: Copy) -> None:
    """A late update of the round before, which the one that was merged took the place of."""
    columns = "device, tokens, norm, wire_bytes, fp32_bytes, accepted, start, merge"
    copy.hub(
        f"INSERT INTO updates (update_id, transfer, round, state, {columns})"
        f" SELECT 'e94d190dd3', transfer || '-late', round - 1, 'superseded', {columns} FROM updates WHERE device = ?",
        copy.disks.ids["device-0"],
    )


def other_bytes(copy: Copy) -> None:
    with closing(sqlite3.connect(copy.disks.hub.database)) as connection:
        (release,) = connection.execute("SELECT sha256 FROM releases WHERE number = 1").fetchone()
    data = bytearray((copy.disks.hub.blobs / release).read_bytes())
    data[-1] ^= 1
    copy.hub("UPDATE releases SET sha256 = ? WHERE number = 1", BlobStore(copy.disks.hub.blobs).put(bytes(data)))


def keep_nothing(copy: Copy) -> None:
    shutil.rmtree(copy.disks.hub.root / BEFORE_MERGES)


def half_blob(copy: Copy) -> None:
    blob = next(copy.disks.devices["device-0"].blobs.iterdir())
    blob.write_bytes(blob.read_bytes()[:-1])


def break_database(copy: Copy) -> None:
    path = copy.disks.devices["device-1"].database
    path.write_bytes(path.read_bytes()[:5000])


def fail_unexpectedly(copy: Copy) -> None:
    copy.said.append(Spoken("hub", "message-failed", {"text": "KeyError"}))


def say_twice(copy: Copy) -> None:
    copy.said.append(next(spoken for spoken in copy.said if spoken.name == "update-accepted"))


def not_fetched(copy: Copy) -> None:
    copy.device("DELETE FROM releases WHERE number = 1")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forget_at_hub, "counted in the device's eyes alone"),
        (lose, "is not in the outbox: it is lost"),
        (refuse_silently, "refused in the device's eyes alone"),
        (make_up, "made no such update"),
        (merge_twice, "was merged 2 times"),
        (leave_out, "is counted and was not merged"),
        (supersede_by_nothing, "is superseded, and by nothing newer"),
        (other_bytes, "is not the merge of what was counted"),
        (keep_nothing, "nobody kept what round 1 merged"),
        (half_blob, "is not what its name says"),
        (break_database, "the database of device-1 is broken"),
        (fail_unexpectedly, "hub said message-failed: KeyError"),
        (say_twice, "2 times that it counts"),
        (not_fetched, "neither adopted nor declined"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_spoilt_is_found(copy: Copy, spoil: Spoil, words: str) -> None:
    spoil(copy)
    assert words in copy.found()
