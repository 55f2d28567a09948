"""What must hold after any run, read from the databases, the blobs, and what was said. Each breach is a sentence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agent.federation.store import open_device_store
from agent.hub.merging import merge_round
from agent.hub.store import open_store
from agent.paths import BlobStore, Home
from agent.transport.outbox import Outbox
from tests.faults.child import BEFORE_MERGES
from tests.faults.community import Disks

Row: TypeAlias = dict[str, Any]

_BLOB = re.compile(r"[0-9a-f]{64}")
UNEXPECTED = ("crashed", "message-failed")
"""Events that no fault excuses."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One event of one process."""

    who: str
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Books:
    """What the hub's database says in the end.

    Attributes:
        updates: every update that counts.
        refused: reasons, by transfer.
        releases: every adapter that the hub ever tried, and release 0.
    """

    updates: Sequence[Row]
    refused: Mapping[str, str]
    releases: Sequence[Row]


def breaches(disks: Disks, said: Sequence[Spoken]) -> list[str]:
    """Say everything that is wrong after a run; nothing runs any more."""
    homes = {"hub": disks.hub, **disks.devices}
    found = [breach for who, home in homes.items() for breach in _database(who, home)]
    if found:
        return found
    books = _books(disks.hub)
    for name, home in disks.devices.items():
        found += _agreement(name, home, disks.ids[name], books)
    found += _counted_once(books, disks)
    found += _blobs(disks, books)
    found += _same_again(disks.hub, books, said)
    found += _said(said)
    return found


def _books(hub: Home) -> Books:
    with closing(sqlite3.connect(hub.database)) as connection:
        connection.row_factory = sqlite3.Row

        def rows(table: str) -> list[Row]:
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]

        releases = [{**row, "updates": json.loads(row["updates"])} for row in rows("releases")]
        return Books(
            updates=rows("updates"),
            refused={row["transfer"]: row["reason"] for row in rows("refusals")},
            releases=sorted(releases, key=lambda row: int(row["round"])),
        )


def _database(who: str, home: Home) -> Iterator[str]:
    with closing(sqlite3.connect(home.database)) as connection:
        try:
            (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.DatabaseError as error:
            answer = str(error)
    if answer != "ok":
        yield f"the database of {who} is broken: {answer}"


def _agreement(name: str, home: Home, device: str, books: Books) -> Iterator[str]:
    """Hold a device's own record of its updates against the hub's."""
    counted = {row["transfer"]: row for row in books.updates if row["device"] == device}
    with open_device_store(home) as store:
        records = store.rounds()
        waiting = {item.transfer for item in Outbox(store.connection).openings()}
    for transfer in counted.keys() - {record.transfer for record in records}:
        yield f"the hub counts {transfer} of {name}, which made no such update"
    for record in records:
        where = f"the update of {name} for round {record.round}"
        at_hub = counted.get(record.transfer)
        if at_hub is not None and record.update_id != at_hub["update_id"]:
            yield f"{where} has other bytes at the hub"
        if at_hub is not None and record.transfer in books.refused:
            yield f"{where} is counted and refused"
        if record.state == "counted" and at_hub is None:
            yield f"{where} is counted in the device's eyes alone"
        if record.state == "refused" and at_hub is not None:
            yield f"{where} is refused in the device's eyes alone ({record.reason})"
        if record.state == "refused" and books.refused.get(record.transfer) != record.reason:
            yield f"{where} was refused as {record.reason}, and by the hub as {books.refused.get(record.transfer)}"
        if record.state == "sending":
            lost = "" if record.transfer in waiting else ", and is not in the outbox: it is lost"
            yield f"{where} was neither counted nor refused in the end{lost}"
        if record.state != "sending" and record.transfer in waiting:
            yield f"{where} is settled and still in the outbox"


def _counted_once(books: Books, disks: Disks) -> Iterator[str]:
    for (number, device), times in Counter((row["round"], row["device"]) for row in books.updates).items():
        if times > 1:
            yield f"{device[:10]} counts {times} times in round {number}"
    for device in {row["device"] for row in books.updates} - set(disks.ids.values()):
        yield f"{device[:10]} counts and is not a member"
    merged = Counter(update for release in books.releases for update in release["updates"])
    for update, times in merged.items():
        if times > 1:
            yield f"update {update[:10]} was merged {times} times"
    for update in merged.keys() - {row["update_id"] for row in books.updates}:
        yield f"update {update[:10]} was merged and is not counted"
    yield from _all_merged(books, merged.keys())


def _all_merged(books: Books, merged: AbstractSet[str]) -> Iterator[str]:
    """See that every update is in the merge that it counts in, or a newer one of its device."""
    tried = {release["round"] for release in books.releases if release["updates"]}
    newest: dict[tuple[int, str], int] = {}
    for row in books.updates:
        merge = (row["merge"], row["device"])
        newest[merge] = max(newest.get(merge, 0), row["round"])
    for row in books.updates:
        where = f"update {row['update_id'][:10]} of round {row['round']}"
        if row["state"] == "superseded":
            if row["round"] == newest[row["merge"], row["device"]]:
                yield f"{where} is superseded, and by nothing newer"
        elif row["merge"] in tried and row["update_id"] not in merged:
            yield f"{where} is counted and was not merged"


def _blobs(disks: Disks, books: Books) -> Iterator[str]:
    for who, home in {"hub": disks.hub, **disks.devices}.items():
        for path in home.blobs.iterdir():
            if _BLOB.fullmatch(path.name) and hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                yield f"a blob of {who} is not what its name says: {path.name}"
    for release in (row for row in books.releases if row["kept"]):  # a rejected candidate's bytes are nobody's business
        path = disks.hub.blobs / release["sha256"]
        if not path.is_file() or path.stat().st_size != release["size"]:
            yield f"the hub has not the bytes of adapter {release['number']}"
    last = [release for release in books.releases if release["state"] == "promoted"][-1]["sha256"]
    for name, home in disks.devices.items():
        with open_device_store(home) as store:
            judged = {row.sha256: row.state for row in store.releases()}
        if last not in judged:
            yield f"{name} has neither adopted nor declined the last release"
        elif judged[last] == "adopted" and not (home.blobs / last).is_file():
            yield f"{name} has not the bytes of what it uses"


def _same_again(hub: Home, books: Books, said: Sequence[Spoken]) -> Iterator[str]:
    """Merge what was counted once more, without any fault: the same bytes must come out."""
    faults = [spoken.fields["kind"] for spoken in said if (spoken.who, spoken.name) == ("hub", "fault")]
    for release in books.releases:
        if not release["updates"]:
            continue
        kept = Home(hub.root / BEFORE_MERGES / str(release["round"]))
        if not kept.database.is_file():
            if "full-disk" not in faults:
                yield f"nobody kept what round {release['round']} merged"
            continue
        with tempfile.TemporaryDirectory() as room:  # a merge changes the books
            books_then = Home(Path(shutil.copytree(kept.root, Path(room) / "hub")))
            with open_store(books_then) as store:
                state = store.round_state()
                assert state is not None
                made = merge_round(store, BlobStore(books_then.blobs), state, now=0.0).release
        if made.manifest.sha256 != release["sha256"] or set(made.updates) != set(release["updates"]):
            yield f"the candidate of round {release['round']} is not the merge of what was counted for it"


def _said(said: Sequence[Spoken]) -> Iterator[str]:
    for spoken in said:
        if spoken.name in UNEXPECTED:
            yield f"{spoken.who} said {spoken.name}: {spoken.fields.get('text', '')}"
    accepted = Counter(str(spoken.fields["update"]) for spoken in said if spoken.name == "update-accepted")
    for update, times in accepted.items():
        if times > 1:
            yield f"the hub said {times} times that it counts {update[:10]}"
