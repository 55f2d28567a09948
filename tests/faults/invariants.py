"""What must hold after any run, read from the databases, the blobs, and what was said. Each breach is a sentence."""

from __future__ import annotations

import hashlib
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.federation.store import RoundRecord, open_device_store
from agent.hub.merging import merge_round
from agent.hub.rounds import RoundState
from agent.hub.store import HubStore, ReleaseRow, UpdateRow, create_store, open_store
from agent.paths import BlobStore, Home
from agent.transport.outbox import Outbox
from tests.faults.child import KEPT
from tests.faults.community import Disks

_BLOB = re.compile(r"[0-9a-f]{64}")
UNEXPECTED = ("crashed", "message-failed")
"""Events that no fault excuses."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One event of one process."""

    who: str
    name: str
    fields: Mapping[str, Any]


def breaches(disks: Disks, said: Sequence[Spoken], *, room: Path) -> list[str]:
    """Say everything that is wrong after a run; nothing runs any more.

    Args:
        disks: of the community.
        said: all events of all processes.
        room: an empty directory to merge once more in.
    """
    homes = {"hub": disks.hub, **disks.devices}
    found = [breach for who, home in homes.items() for breach in _database(who, home)]
    if found:
        return found
    with open_store(disks.hub) as store:
        updates, releases = store.updates(), _all_releases(disks.hub)
        refused = {row["transfer"]: str(row["reason"]) for row in store.refusals()}
        for name, home in disks.devices.items():
            found += _agreement(name, home, disks.ids[name], updates, refused)
        found += _counted_once(updates, releases, disks)
        found += _blobs(disks, releases)
        found += _same_again(store, disks.hub, room)
    found += _said(said)
    return found


def _database(who: str, home: Home) -> Iterator[str]:
    with closing(sqlite3.connect(home.database)) as connection:
        try:
            (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.DatabaseError as error:
            answer = str(error)
    if answer != "ok":
        yield f"the database of {who} is broken: {answer}"


def _agreement(
    name: str, home: Home, device: str, updates: Sequence[UpdateRow], refused: Mapping[str, str]
) -> Iterator[str]:
    """Hold a device's own record of its updates against the hub's."""
    counted = {row.transfer: row for row in updates if row.device == device}
    with open_device_store(home) as store:
        records: list[RoundRecord] = store.rounds()
        waiting = {item.transfer for item in Outbox(store.connection).openings()}
    known = {record.transfer for record in records}
    for transfer in counted.keys() - known:
        yield f"the hub counts {transfer} of {name}, which made no such update"
    for record in records:
        where = f"the update of {name} for round {record.round}"
        at_hub = counted.get(record.transfer)
        if at_hub is not None and record.update_id != at_hub.update_id:
            yield f"{where} has other bytes at the hub"
        if at_hub is not None and record.transfer in refused:
            yield f"{where} is counted and refused"
        if record.state == "counted" and at_hub is None:
            yield f"{where} is counted in the device's eyes alone"
        if record.state == "refused" and at_hub is not None:
            yield f"{where} is refused in the device's eyes alone ({record.reason})"
        if record.state == "refused" and refused.get(record.transfer) != record.reason:
            yield f"{where} was refused as {record.reason}, and by the hub as {refused.get(record.transfer)}"
        if record.state == "sending":
            lost = "" if record.transfer in waiting else ", and is not in the outbox: it is lost"
            yield f"{where} was neither counted nor refused in the end{lost}"
        if record.state != "sending" and record.transfer in waiting:
            yield f"{where} is settled and still in the outbox"


def _counted_once(updates: Sequence[UpdateRow], releases: Sequence[ReleaseRow], disks: Disks) -> Iterator[str]:
    for (number, device), times in Counter((row.round, row.device) for row in updates).items():
        if times > 1:
            yield f"{device[:10]} counts {times} times in round {number}"
    for device in {row.device for row in updates} - set(disks.ids.values()):
        yield f"{device[:10]} counts and is not a member"
    merged = Counter(update for release in releases for update in release.updates)
    for update, times in merged.items():
        if times > 1:
            yield f"update {update[:10]} was merged {times} times"
    for update in merged.keys() - {row.update_id for row in updates}:
        yield f"update {update[:10]} was merged and is not counted"
    tried = {release.manifest.round for release in releases if release.updates}
    for row in updates:
        if row.round in tried and row.update_id not in merged:
            yield f"update {row.update_id[:10]} of round {row.round} is counted and was not merged"


def _blobs(disks: Disks, releases: Sequence[ReleaseRow]) -> Iterator[str]:
    for who, home in {"hub": disks.hub, **disks.devices}.items():
        for path in home.blobs.iterdir():
            if _BLOB.fullmatch(path.name) and hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                yield f"a blob of {who} is not what its name says: {path.name}"
    for release in releases:
        path = disks.hub.blobs / release.manifest.sha256
        if not path.is_file() or path.stat().st_size != release.manifest.size:
            yield f"the hub has not the bytes of adapter {release.manifest.number}"
    last = [release for release in releases if release.state == "promoted"][-1].manifest
    for name, home in disks.devices.items():
        with open_device_store(home) as store:
            judged = {row.sha256: row.state for row in store.releases()}
            adopted = store.adopted()
        if last.sha256 not in judged:
            yield f"{name} has neither adopted nor declined the last release"
        if adopted is not None and not (home.blobs / adopted[1]).is_file() and judged.get(last.sha256) == "adopted":
            yield f"{name} has not the bytes of what it uses"


def _all_releases(home: Home) -> list[ReleaseRow]:
    """Give every adapter that the hub ever tried."""
    with open_store(home) as store:
        return [*store._releases("promoted"), *store._releases("rejected"), *store._releases("candidate")]


def _same_again(store: HubStore, home: Home, room: Path) -> Iterator[str]:
    """Merge what was counted once more, in another order and without any fault: the same bytes must come out."""
    again = Home(room)
    again.create()
    blobs, first = BlobStore(again.blobs), store.releases()[0]
    blobs.put((home.blobs / first.manifest.sha256).read_bytes())
    for kept in (*(home.root / KEPT).iterdir(), *home.blobs.iterdir()):
        if _BLOB.fullmatch(kept.name):
            blobs.put(kept.read_bytes())
    with create_store(again) as fresh:
        fresh.save_config(store.config)
        fresh.add_release(first)
        for release in sorted(_all_releases(home), key=lambda row: row.manifest.round):
            number = release.manifest.round
            if not release.updates:
                continue
            state = RoundState(number=number, phase="merging", deadline=0.0)
            start = fresh.releases()[-1].manifest.number
            fresh.open_round(state, start_release=start, seal_seed=b"")
            rows = [row for row in store.updates() if row.update_id in release.updates]
            random.Random(number).shuffle(rows)
            for row in rows:
                fresh.add_update(row, accepted=0)
            made = merge_round(fresh, blobs, state, now=0.0).release.manifest
            if made.sha256 != release.manifest.sha256:
                yield f"the candidate of round {number} is not the merge of what was counted for it"
                return
            promoted = release.state == "promoted"
            fresh.end_round(number, candidate=made.sha256, promote=promoted, reason="")


def _said(said: Sequence[Spoken]) -> Iterator[str]:
    for spoken in said:
        if spoken.name in UNEXPECTED:
            yield f"{spoken.who} said {spoken.name}: {spoken.fields.get('text', '')}"
    accepted = Counter(str(spoken.fields["update"]) for spoken in said if spoken.name == "update-accepted")
    for update, times in accepted.items():
        if times > 1:
            yield f"the hub said {times} times that it counts {update[:10]}"
