"""The book of releases: what was promoted, what is on trial, and the way back to a release that is kept.

A release has a number that is never given again, not even after the hub went back from it, so that a number says what
was withdrawn. What its merge left over for the next one (its carry) is kept beside it and comes back with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from agent.errors import MergeError, StateError
from agent.federation.messages import Manifest
from agent.hub import tables
from agent.hub.database import Database, get_fact, set_fact
from agent.hub.gate import GateDecision
from agent.hub.placing import Line
from agent.hub.round_book import (
    close_round,
    forget_keys,
    get_state,
    require_none_withdrawn,
    set_state,
    settle_updates,
    withdraw_updates,
)
from agent.hub.rounds import RoundState, ended

MAX_WITHDRAWN = 64
"""Ranges of withdrawn releases that are announced; with more, the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """An adapter the hub made, whatever became of it.

    Attributes:
        state: ``candidate``, ``promoted``, ``rejected`` or ``withdrawn``.
        carry: hex SHA-256 of what its merge left over; empty where that was nothing.
        kept: whether the adapter is still on the disk.
    """

    manifest: Manifest
    content_key: bytes
    state: str
    updates: tuple[str, ...]
    carry: str = ""
    kept: bool = True

    @property
    def served(self) -> bool:
        """Whether devices may have it: a release that stands or led to the one that does, or what is on trial."""
        return self.kept and self.state in {"promoted", "candidate"}


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What going back changed.

    Attributes:
        release: the one that stands again.
        withdrawn: numbers of the releases that no longer count.
        round: the last one; 0 where none was begun yet.
        phase: in which it was.
        next_round: the first that starts from the release; None where there are to be no more.
    """

    release: Manifest
    withdrawn: tuple[int, ...]
    round: int
    phase: str
    next_round: int | None


class ReleaseBook(Database):
    """Releases and candidates."""

    def add_release(self, release: ReleaseRow) -> None:
        """Keep release 0."""
        with self.transaction() as connection:
            _insert_release(connection, release)

    def save_candidate(
        self, before: RoundState, after: RoundState, release: ReleaseRow, *, report: dict[str, Any], oldest: int
    ) -> None:
        """End a merge: the candidate and its trial begin, its updates are merged, and old keys are forgotten.

        Args:
            before: the merging phase.
            after: the trial.
            release: the candidate.
            report: what the merge found.
            oldest: the first round for which an update could still count.

        Raises:
            RoundMovedError: the hub is not at ``before`` any more, or an update that was merged was withdrawn.
            MergeError: the candidate is, to the byte, a release that was promoted before.
        """
        with self.transaction() as connection:
            set_state(connection, before, after)
            require_none_withdrawn(connection, before.number, release.updates)
            _insert_release(connection, release)
            forget_keys(connection, oldest)
            settle_updates(connection, before.number, "merged")
            row = update(tables.rounds).where(tables.rounds.c.round == before.number)
            connection.execute(row.values(report=json.dumps(report)))

    def end_round(self, before: RoundState, candidate: str, decision: GateDecision) -> None:
        """Promote the candidate, or reject it and change nothing else.

        Args:
            before: the trial; or the merging phase, where no candidate could be made.
            candidate: hex SHA-256; empty where there is none.
            decision: what the gate said.

        Raises:
            RoundMovedError: the hub is not at ``before`` any more.
        """
        outcome: Literal["promoted", "rejected"] = "promoted" if decision.promote else "rejected"
        found = {
            "gate": {
                "promote": decision.promote,
                "median_change": decision.median_change,
                "worst_change": decision.worst_change,
                "group": decision.group,
                "harmed": decision.harmed,
            }
        }
        with self.transaction() as connection:
            set_state(connection, before, ended(before, outcome))
            where = tables.releases.c.sha256 == candidate
            connection.execute(update(tables.releases).where(where).values(state=outcome))
            settle_updates(connection, before.number, "spent")
            close_round(
                connection, before.number, outcome=outcome, reason=decision.reason, found=found if candidate else {}
            )

    def release(self, sha256: str) -> ReleaseRow | None:
        """Give one adapter by its hash."""
        with self.reading() as connection:
            row = connection.execute(select(tables.releases).where(tables.releases.c.sha256 == sha256)).first()
        return None if row is None else _release(row)

    def releases(self) -> list[ReleaseRow]:
        """Give the releases that lead to the one that stands, oldest first; none that was withdrawn is among them."""
        return self._releases("promoted")

    def withdrawn(self) -> list[ReleaseRow]:
        """Give the releases that an operator went back from, oldest first."""
        return self._releases("withdrawn")

    def _releases(self, state: str) -> list[ReleaseRow]:
        column = tables.releases.c
        query = select(tables.releases).where(column.state == state).order_by(column.number)
        with self.reading() as connection:
            return [_release(row) for row in connection.execute(query).all()]

    def current(self) -> ReleaseRow:
        """Give the release that stands."""
        with self.reading() as connection:
            return _current(connection)

    def candidate(self, number: int) -> ReleaseRow | None:
        """Give the candidate that is on trial in a round."""
        column = tables.releases.c
        query = select(tables.releases).where(column.state == "candidate", column.round == number)
        with self.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _release(row)

    def next_release_number(self) -> int:
        """Give the number that the next release gets: one that was never given."""
        with self.reading() as connection:
            return _highest(connection) + 1

    def line(self) -> Line:
        """Give the releases as the place of an update depends on them."""
        promoted, gone = self.releases(), self.withdrawn()
        return Line(
            positions={row.manifest.sha256: place for place, row in enumerate(promoted) if row.kept},
            current=promoted[-1].manifest.sha256,
            withdrawn=frozenset(row.manifest.sha256 for row in gone),
        )

    def withdrawn_ranges(self) -> list[tuple[int, int]]:
        """Give the numbers of withdrawn releases as (first, last), oldest first."""
        raw = self.fact("withdrawn")
        return [] if raw is None else [(first, last) for first, last in json.loads(raw)]

    def forget_releases(self, keep: int) -> list[str]:
        """Let go of the adapters and carries that nobody can go back to: all but the newest and the very first.

        Args:
            keep: how many of the newest releases stay.

        Returns:
            The blobs that nothing needs any longer, to be removed once this is committed.
        """
        column = tables.releases.c
        promoted = [row for row in self.releases() if row.kept]
        old = promoted[1 : max(1, len(promoted) - keep)]
        gone = [row for state in ("withdrawn", "rejected") for row in self._releases(state) if row.kept]
        hashes = [row.manifest.sha256 for row in (*old, *gone)]
        with self.transaction() as connection:
            connection.execute(update(tables.releases).where(column.sha256.in_(hashes)).values(kept=0, carry=""))
            needed = set(connection.execute(select(column.carry).where(column.kept == 1)).scalars())
        carries = {row.carry for row in (*old, *gone) if row.carry}
        return [*hashes, *(carry for carry in sorted(carries) if carry not in needed)]

    def roll_back(self, number: int, *, by: str, oldest_after: int, last_round: int | None = None) -> RolledBack:
        """Go back to a release: the current round ends, and what came after the release is withdrawn.

        Args:
            number: of the release.
            by: the operator.
            oldest_after: how many rounds an update may be late.
            last_round: after which the community closes, if it does.

        Raises:
            StateError: there is no such release, it is not kept, was withdrawn, or stands already.
        """
        column = tables.releases.c
        follows: int | None = 1
        with self.transaction() as connection:
            target, current = _target(connection, number), _current(connection)
            state = get_state(connection)
            later = select(column.sha256, column.number).where(column.state == "promoted", column.number > number)
            gone = connection.execute(later.order_by(column.number)).all()
            starts = [row.sha256 for row in gone]
            connection.execute(update(tables.releases).where(column.sha256.in_(starts)).values(state="withdrawn"))
            candidates = update(tables.releases).where(column.state == "candidate")
            connection.execute(candidates.values(state="rejected"))
            _note_withdrawn(connection, (number + 1, _highest(connection)))
            if state is not None:
                last = _end_for_rollback(connection, state, number, starts, late=oldest_after)
                ends = state.phase == "closed" or (last_round is not None and last >= last_round)
                follows = None if ends else last + 1
            details = {"from": current.manifest.number, "to": number, "withdrawn": [row.number for row in gone]}
            if state is not None:
                details |= {"round": state.number, "phase": state.phase}
            values = {"at": int(time.time()), "act": "rollback", "operator": by, "details": json.dumps(details)}
            connection.execute(insert(tables.acts).values(values))
        return RolledBack(
            release=target.manifest,
            withdrawn=tuple(row.number for row in gone),
            round=0 if state is None else state.number,
            phase="" if state is None else state.phase,
            next_round=follows,
        )

    def acts(self) -> list[dict[str, Any]]:
        """Give what operators did by hand, oldest first."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.acts).order_by(tables.acts.c.id)).mappings().all()
        return [{**row, "details": json.loads(row["details"])} for row in rows]

    def wanted_blobs(self) -> set[str]:
        """Give the hashes of everything that must stay on the disk."""
        column, waiting = tables.releases.c, tables.updates.c
        kept = select(column.sha256, column.carry).where(column.kept == 1, column.state.in_(("promoted", "candidate")))
        with self.reading() as connection:
            found = {item for row in connection.execute(kept).all() for item in row if item}
            query = select(waiting.update_id).where(waiting.state == "waiting")
            return found | set(connection.execute(query).scalars())


def _end_for_rollback(
    connection: Connection, state: RoundState, number: int, starts: Sequence[str], *, late: int
) -> int:
    """End the current round, and one that was prepared; what waits for a merge waits for that of the next round.

    Gives the last round there was.
    """
    column = tables.rounds.c
    last = connection.execute(select(func.max(column.round))).scalar() or state.number
    withdraw_updates(connection, starts, merge=last + 1, oldest=last + 1 - late)
    # Whatever was trained from a withdrawn release is refused, so nobody needs the keys of rounds that began there.
    begun = update(tables.rounds).where(column.start_release > number)
    connection.execute(begun.values(seal_seed=b""))
    running = select(column.round).where(column.outcome.in_(("running", "waiting")))
    reason = f"the hub went back to release {number}"
    for name in connection.execute(running).scalars().all():
        close_round(connection, name, outcome="rolled-back", reason=reason, found={})
    if state.phase != "closed":
        set_state(connection, state, RoundState(number=last, phase="rolled-back", deadline=state.deadline))
    return int(last)


def _target(connection: Connection, number: int) -> ReleaseRow:
    """Give the release that an operator wants back.

    Raises:
        StateError: it cannot be had.
    """
    column = tables.releases.c
    query = select(tables.releases).where(column.number == number, column.state.in_(("promoted", "withdrawn")))
    row = connection.execute(query).first()
    current = _current(connection).manifest.number
    kept = select(column.number).where(column.state == "promoted", column.kept == 1, column.number < current)
    choice = ", ".join(map(str, connection.execute(kept.order_by(column.number)).scalars())) or "none"
    advice = f"Releases that can be gone back to: {choice}. Nothing was changed."
    if row is None:
        raise StateError(f"there is no release {number}", advice=advice)
    if row.state == "withdrawn":
        raise StateError(f"release {number} was withdrawn by an earlier rollback", advice=advice)
    if number == current:
        raise StateError(f"release {number} is the one that stands", advice=advice)
    if not row.kept:
        raise StateError(f"release {number} is not kept any more", advice=advice)
    return _release(row)


def _current(connection: Connection) -> ReleaseRow:
    column = tables.releases.c
    query = select(tables.releases).where(column.state == "promoted").order_by(column.number.desc()).limit(1)
    return _release(connection.execute(query).one())


def _highest(connection: Connection) -> int:
    """Give the highest number that a release ever had."""
    column = tables.releases.c
    query = select(func.max(column.number)).where(column.state.in_(("promoted", "withdrawn")))
    return int(connection.execute(query).scalar_one())


def _note_withdrawn(connection: Connection, fresh: tuple[int, int]) -> None:
    """Add a range of withdrawn releases; one that reaches into earlier ones takes them in."""
    raw = get_fact(connection, "withdrawn")
    known = [] if raw is None else [tuple(pair) for pair in json.loads(raw)]
    apart = [pair for pair in known if pair[0] < fresh[0]]
    set_fact(connection, "withdrawn", json.dumps([*apart, fresh][-MAX_WITHDRAWN:]).encode())


def _insert_release(connection: Connection, release: ReleaseRow) -> None:
    manifest, column = release.manifest, tables.releases.c
    standing = select(column.number).where(
        column.sha256 == manifest.sha256, column.state.in_(("promoted", "withdrawn"))
    )
    number = connection.execute(standing).scalar()
    if number is not None:
        raise MergeError(
            f"the merge gives release {number} again, to the byte", advice="Nothing was learned; the next round begins."
        )
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
        "carry": release.carry,
        "kept": int(release.kept),
    }
    # The very same adapter may have been a candidate before, and was rejected: what was said of it still holds.
    connection.execute(delete(tables.releases).where(column.sha256 == manifest.sha256))
    connection.execute(insert(tables.releases).values(values))


def _release(row: Row[Any]) -> ReleaseRow:
    manifest = Manifest(number=row.number, sha256=row.sha256, parent=row.parent, size=row.size, round=row.round)
    return ReleaseRow(
        manifest=manifest,
        content_key=bytes(row.content_key),
        state=row.state,
        updates=tuple(json.loads(row.updates)),
        carry=row.carry,
        kept=bool(row.kept),
    )
