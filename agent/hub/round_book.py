"""The book of rounds: where the hub is, what came in for each round, and what became of it.

An update is ``waiting`` until the merge that it counts in, and ``merged`` from then on, whatever the gate says of the
candidate. It is ``superseded`` where a newer one of the same device counts in the same merge, ``withdrawn`` where what
it started from was rolled back or its device is no member any more, and ``spent`` where it or its round could not be
merged. None of these is ever left again, so an update counts once or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Select, delete, func, insert, or_, select, update

from agent.errors import StateError
from agent.hub import tables
from agent.hub.database import Database, get_fact, set_fact
from agent.hub.gate import Judgement
from agent.hub.rounds import TAKING, RoundState, Tally

Fate = Literal["counted", "already-counted", "superseded"]
KEPT_REFUSALS = 10_000
"""Refusals that are remembered; older ones are of rounds that are long over, or of a device that never stops."""

TRIM_EVERY = 1_000
"""So many refusals may be remembered beyond that, until the older ones are looked for."""


class RoundMovedError(StateError):
    """The rounds are no longer where whoever wanted to change them believed: an operator went back meanwhile."""


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """An update that counts, or counted.

    Attributes:
        round: the round it was made for.
        start: hex SHA-256 of the release it was trained from.
        merge: the round in whose merge it counts: ``round``, or a later one.
        state: see the module.
    """

    update_id: str
    round: int
    device: str
    transfer: str
    tokens: int
    norm: float
    wire_bytes: int
    fp32_bytes: int
    start: str = ""
    merge: int = 0
    state: str = "waiting"

    @property
    def late(self) -> int:
        """How many rounds after its own it counts."""
        return self.merge - self.round


@dataclass(frozen=True, slots=True)
class RoundKey:
    """What is still known of a round that updates may be made for."""

    round: int
    start_release: int
    seal_seed: bytes
    draw: int | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a device had sent that does not count any more.

    Attributes:
        waiting: its updates that waited for a merge, by id.
        on_trial: its updates in the candidate that is tried now. They stay in it: a sum cannot be taken apart.
        released: its updates in releases that stand.
    """

    waiting: tuple[str, ...] = ()
    on_trial: int = 0
    released: int = 0


class RoundBook(Database):
    """Rounds, updates, refusals and verdicts."""

    # --- where the hub is --------------------------------------------------------------------------------------

    def round_state(self) -> RoundState | None:
        """Give where the hub is."""
        with self.reading() as connection:
            return get_state(connection)

    def move(self, before: RoundState, after: RoundState) -> None:
        """Take a step.

        Raises:
            RoundMovedError: the hub is not at ``before`` any more.
        """
        with self.transaction() as connection:
            set_state(connection, before, after)

    def prepare_round(self, number: int, *, start_release: int, seal_seed: bytes) -> None:
        """Make the key of a round that is not open yet, for devices that need not wait; once."""
        with self.transaction() as connection:
            known = select(tables.rounds.c.round).where(tables.rounds.c.round == number)
            if connection.execute(known).first() is None:
                values = _new_round(number, start_release=start_release, seal_seed=seal_seed, draw=None)
                connection.execute(insert(tables.rounds).values({**values, "outcome": "waiting"}))

    def open_round(
        self, before: RoundState | None, after: RoundState, *, start_release: int, seal_seed: bytes, oldest: int
    ) -> None:
        """Begin a round with a key of its own, or the one that was prepared, and forget keys that are of no more use.

        Args:
            before: where the hub was; None before the first round.
            after: the round's first state, or ``closed``.
            start_release: number of the release that devices start from.
            seal_seed: of the key, where none was prepared.
            oldest: the first round for which an update could still count.

        Raises:
            RoundMovedError: the hub is not at ``before`` any more.
        """
        column = tables.rounds.c
        with self.transaction() as connection:
            set_state(connection, before, after)
            forget_keys(connection, oldest)
            _trim_refusals(connection)
            if after.phase == "closed":
                return
            running = {"outcome": "running", "opened": int(time.time()), "start_release": start_release}
            prepared = update(tables.rounds).where(column.round == after.number, column.outcome == "waiting")
            if connection.execute(prepared.values({**running, "draw": after.draw})).rowcount == 0:
                values = _new_round(after.number, start_release=start_release, seal_seed=seal_seed, draw=after.draw)
                connection.execute(insert(tables.rounds).values({**values, **running}))

    def round_keys(self) -> list[RoundKey]:
        """Give the rounds whose key is not forgotten, oldest first."""
        column = tables.rounds.c
        query = select(column.round, column.start_release, column.seal_seed, column.draw)
        query = query.where(func.length(column.seal_seed) > 0).order_by(column.round)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return [RoundKey(row.round, row.start_release, bytes(row.seal_seed), row.draw) for row in rows]

    def round_rows(self, number: int | None = None) -> list[dict[str, Any]]:
        """Give every round with its outcome and report, oldest first; or the one of this number."""
        column = tables.rounds.c
        names = (column.round, column.start_release, column.outcome, column.reason, column.report)
        query = select(*names, column.draw, column.opened, column.ended).order_by(column.round)
        if number is not None:
            query = query.where(column.round == number)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "report": json.loads(row["report"])} for row in rows]

    def tally(self, state: RoundState, candidate: str = "") -> Tally:
        """Count what has come in for the current round.

        Args:
            state: where the hub is.
            candidate: hex SHA-256 of what is on trial.
        """
        column, said = tables.updates.c, tables.verdicts.c
        with self.reading() as connection:
            if state.phase in TAKING:
                query = select(func.count().filter(column.round == state.number), func.count())
                fresh, total = connection.execute(query.where(*_waiting(state.number))).one()
                return Tally(fresh=fresh, late=total - fresh)
            if state.phase != "trial":
                return Tally()
            heard = select(said.device).where(said.candidate == candidate)
            verdicts = connection.execute(select(func.count()).select_from(heard.subquery())).scalar_one()
            silent = select(func.count()).where(column.merge == state.number, column.state == "merged")
            gone = select(tables.devices.c.device).where(tables.devices.c.standing != "member")
            silent = silent.where(column.device.not_in(heard), column.device.not_in(gone))
            unheard = connection.execute(silent).scalar_one()
            return Tally(verdicts=verdicts, unheard=unheard)

    # --- updates -----------------------------------------------------------------------------------------------

    def counts_already(self, device: str, number: int) -> bool:
        """Say whether a device has an update for this round already, whatever became of it."""
        with self.reading() as connection:
            return _has_one(connection, device, number)

    def add_update(self, row: UpdateRow, *, accepted: int) -> tuple[Fate, str]:
        """Count an update: one a device a round, and of a device's in one merge the one made for the newest round.

        Returns:
            What became of it, and the id of an older update that it supersedes, if any.
        """
        column = tables.updates.c
        with self.transaction() as connection:
            same = select(column.update_id).where(column.update_id == row.update_id)
            if _has_one(connection, row.device, row.round) or connection.execute(same).first() is not None:
                return "already-counted", ""
            query = select(column.update_id, column.round).where(*_waiting(row.merge), column.device == row.device)
            other = connection.execute(query).first()
            if other is not None and other.round > row.round:
                return "superseded", ""
            connection.execute(insert(tables.updates).values({**asdict(row), "accepted": accepted}))
            if other is None:
                return "counted", ""
            older = update(tables.updates).where(column.update_id == other.update_id)
            connection.execute(older.values(state="superseded"))
            return "counted", other.update_id

    def spend_update(self, update_id: str) -> None:
        """Give up an update that waits and cannot be merged."""
        column = tables.updates.c
        waiting = update(tables.updates).where(column.update_id == update_id, column.state == "waiting")
        with self.transaction() as connection:
            connection.execute(waiting.values(state="spent"))

    def updates(self, number: int | None = None) -> list[UpdateRow]:
        """Give the updates that were made for a round, or for any, in order of round and device."""
        query = select(tables.updates).order_by(tables.updates.c.round, tables.updates.c.device)
        return self._updates(query if number is None else query.where(tables.updates.c.round == number))

    def updates_in(self, merge: int, state: str) -> list[UpdateRow]:
        """Give the updates of one merge that are in this state, in order of device."""
        column = tables.updates.c
        query = select(tables.updates).where(column.merge == merge, column.state == state).order_by(column.device)
        return self._updates(query)

    def updates_over(self, merge: int) -> list[UpdateRow]:
        """Give the updates that nobody needs to open any more once this merge is over, or the one before it.

        Going back to an earlier release can end two rounds at once: the one that is tried, and the one that collects.
        """
        column = tables.updates.c
        over = select(tables.updates).where(column.merge.in_((merge - 1, merge)), column.state != "waiting")
        return self._updates(over)

    def _updates(self, query: Select[Any]) -> list[UpdateRow]:
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [UpdateRow(**{key: row[key] for key in UpdateRow.__dataclass_fields__}) for row in rows]

    # --- refusals ----------------------------------------------------------------------------------------------

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
        with self.transaction() as connection:
            added = connection.execute(insert(tables.refusals).values(values)).inserted_primary_key
            if added is not None and added[0] % TRIM_EVERY == 0:  # a round may be long, and a device talkative
                _trim_refusals(connection)

    def settlement(self, device: str, transfer: str) -> tuple[str, str] | None:
        """Say what became of a device's transfer: ``("", "")`` counted, (reason, message) refused, none where open."""
        column = tables.updates.c
        counted = select(column.update_id).where(column.transfer == transfer, column.device == device)
        said = tables.refusals.c
        refused = select(said.reason, said.message).where(said.transfer == transfer, said.device == device)
        refused = refused.order_by(said.id)
        with self.reading() as connection:
            if connection.execute(counted).first() is not None:
                return ("", "")
            row = connection.execute(refused).first()
        return None if row is None else (row.reason, row.message)

    def refusals(self, number: int | None = None) -> list[dict[str, Any]]:
        """Give the refusals of one round, or all that are remembered, oldest first."""
        query = select(tables.refusals).order_by(tables.refusals.c.id)
        if number is not None:
            query = query.where(tables.refusals.c.round == number)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [dict(row) for row in rows]

    # --- verdicts ----------------------------------------------------------------------------------------------

    def add_verdict(self, verdict: Judgement, *, candidate: str, number: int) -> bool:
        """Keep a device's verdict on a candidate; the first one counts, and False is said of another."""
        column = tables.verdicts.c
        known = select(column.device).where(column.candidate == candidate, column.device == verdict.device)
        with self.transaction() as connection:
            if connection.execute(known).first() is not None:
                return False
            values = {"candidate": candidate, "round": number, **asdict(verdict)}
            connection.execute(insert(tables.verdicts).values(values))
        return True

    def verdicts(self, candidate: str) -> dict[str, Judgement]:
        """Give the verdicts on a candidate, by device."""
        return self._verdicts(tables.verdicts.c.candidate == candidate)

    def verdicts_of(self, number: int) -> dict[str, Judgement]:
        """Give the verdicts on the candidate of a round, by device."""
        return self._verdicts(tables.verdicts.c.round == number)

    def _verdicts(self, where: Any) -> dict[str, Judgement]:
        column = tables.verdicts.c
        query = select(column.device, column.before, column.after, column.targets).where(where)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(column.device)).mappings().all()
        return {row["device"]: Judgement(**row) for row in rows}


# --- inside transactions -------------------------------------------------------------------------------------------


def get_state(connection: Connection) -> RoundState | None:
    """Give where the hub is."""
    raw = get_fact(connection, "round")
    return None if raw is None else RoundState(**json.loads(raw))


def set_state(connection: Connection, before: RoundState | None, after: RoundState) -> None:
    """Change where the hub is, and the round's draw with it.

    Raises:
        RoundMovedError: it is not at ``before``.
    """
    found = get_state(connection)
    if found != before:
        raise RoundMovedError(
            f"the hub is at {found}, not at {before}", advice="Look again; somebody went back to another release."
        )
    set_fact(connection, "round", json.dumps(asdict(after)).encode())
    if after.phase in TAKING:
        row = update(tables.rounds).where(tables.rounds.c.round == after.number)
        connection.execute(row.values(draw=after.draw))


def forget_keys(connection: Connection, oldest: int) -> None:
    """Forget the keys of all rounds before ``oldest``."""
    column = tables.rounds.c
    connection.execute(
        update(tables.rounds).where(column.round < oldest, func.length(column.seal_seed) > 0).values(seal_seed=b"")
    )


def close_round(connection: Connection, number: int, *, outcome: str, reason: str, found: dict[str, Any]) -> None:
    """Write down how a round ended, and add what was found to its report."""
    column = tables.rounds.c
    report = connection.execute(select(column.report).where(column.round == number)).scalar()
    values = {
        "outcome": outcome,
        "reason": reason,
        "ended": int(time.time()),
        "report": json.dumps({**json.loads(report or "{}"), **found}),
    }
    connection.execute(update(tables.rounds).where(column.round == number).values(values))


def settle_updates(connection: Connection, merge: int, state: str) -> None:
    """Say what became of everything that waited for a merge."""
    connection.execute(update(tables.updates).where(*_waiting(merge)).values(state=state))


def withdraw_updates(connection: Connection, starts: Sequence[str], *, merge: int, oldest: int) -> None:
    """Drop what waits and started from a withdrawn release or is too old, and let the rest wait for ``merge``.

    A device may have had two that waited, for two merges: the one that was made for the newer round counts.
    """
    column, other = tables.updates.c, tables.updates.alias()
    waiting = update(tables.updates).where(column.state == "waiting")
    connection.execute(waiting.where(or_(column.start.in_(starts), column.round < oldest)).values(state="withdrawn"))
    newest = select(func.max(other.c.round)).where(other.c.device == column.device, other.c.state == "waiting")
    connection.execute(waiting.where(column.round < newest.scalar_subquery()).values(state="superseded"))
    connection.execute(waiting.values(merge=merge))


def drop_work(connection: Connection, device: str) -> Dropped:
    """Let nothing count any more that a device sent and that is not merged yet, its word in a trial included."""
    column, said, made = tables.updates.c, tables.verdicts.c, tables.releases.c
    mine = column.device == device
    waiting = tuple(connection.execute(select(column.update_id).where(mine, column.state == "waiting")).scalars())
    connection.execute(update(tables.updates).where(mine, column.state == "waiting").values(state="withdrawn"))
    candidates = select(made.sha256).where(made.state == "candidate")
    connection.execute(delete(tables.verdicts).where(said.device == device, said.candidate.in_(candidates)))

    def merged_in(state: str) -> int:
        rounds = select(made.round).where(made.state == state)
        query = select(func.count()).where(mine, column.state == "merged", column.merge.in_(rounds))
        return int(connection.execute(query).scalar_one())

    return Dropped(waiting, merged_in("candidate"), merged_in("promoted"))


def require_none_withdrawn(connection: Connection, merge: int, updates: Collection[str]) -> None:
    """Look that nothing that was merged was withdrawn meanwhile.

    Raises:
        RoundMovedError: something was: its device left, or was revoked.
    """
    column = tables.updates.c
    gone = select(column.update_id).where(column.merge == merge, column.state == "withdrawn")
    if not set(connection.execute(gone).scalars()).isdisjoint(updates):
        raise RoundMovedError("an update was withdrawn while it was merged", advice="It is merged again without it.")


def _trim_refusals(connection: Connection) -> None:
    trim = select(func.max(tables.refusals.c.id) - KEPT_REFUSALS).scalar_subquery()
    connection.execute(delete(tables.refusals).where(tables.refusals.c.id <= trim))


def _waiting(merge: int) -> tuple[Any, Any]:
    return (tables.updates.c.merge == merge, tables.updates.c.state == "waiting")


def _has_one(connection: Connection, device: str, number: int) -> bool:
    column = tables.updates.c
    query = select(column.update_id).where(column.round == number, column.device == device)
    return connection.execute(query).first() is not None


def _new_round(number: int, *, start_release: int, seal_seed: bytes, draw: int | None) -> dict[str, Any]:
    return {
        "round": number,
        "start_release": start_release,
        "seal_seed": seal_seed,
        "reason": "",
        "report": "{}",
        "draw": draw,
    }
