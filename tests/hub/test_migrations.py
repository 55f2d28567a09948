"""Databases of older versions, made by the schemas that those versions had."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect

from agent.crypto import canonical
from agent.crypto.identity import Identity
from agent.crypto.replay import ReplayWindow
from agent.errors import AlreadyRunningError
from agent.hub import tables
from agent.hub.database import make_engine
from agent.hub.store import HubStore, create_store, open_store
from agent.paths import BlobStore, Home, exclusive
from tests.hub.desk import make_desk

SCHEMAS = Path(__file__).parent / "schemas"
FIRST, SECOND = "1" * 64, "2" * 64
OLD_STATE = {"number": 2, "phase": "open", "deadline": 50.0, "extended": 0}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "hub")
    made.create()
    return made


def first_version(home: Home, *, state: dict[str, Any], outcome: str = "running", seed: bytes = b"seed") -> None:
    """Write the database of a hub of the first version: round 1 promoted release 1, round 2 is under way."""
    with closing(sqlite3.connect(home.database)) as connection:
        connection.executescript((SCHEMAS / "1.sql").read_text())
        facts = {"schema": b"1", "round": json.dumps(state).encode(), "carry": b"left over", "config": config(home)}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        rounds = [(1, 0, b"", "promoted", "better", '{"discarded_energy": 0.5}'), (2, 1, seed, outcome, "", "{}")]
        connection.executemany("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)", rounds)
        releases = [
            (FIRST, 0, 0, "", 10, bytes(32), "promoted", 0, "[]"),
            (SECOND, 1, 1, FIRST, 10, bytes(32), "promoted", 0, '["u1"]'),
        ]
        connection.executemany("INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", releases)
        updates = [("u1", 1, "ada", "t1", 5, 1.0, 7, 9, 0), ("u2", 2, "ada", "t2", 5, 1.0, 7, 9, 0)]
        connection.executemany("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", updates)
        connection.commit()


def config(home: Home) -> bytes:
    """Give the configuration that a hub of the first version wrote: without what is new."""
    desk = make_desk(home.root / "another")
    said = json.loads(desk.config.model_dump_json())
    desk.close()
    del said["keep_releases"]
    return json.dumps(said).encode()


def test_database_on_which_an_older_hub_still_runs_is_left_as_it_is(home: Home) -> None:
    first_version(home, state=OLD_STATE)
    with exclusive(home), pytest.raises(AlreadyRunningError):
        open_store(home)
    with closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("SELECT value FROM facts WHERE key = 'schema'").fetchone() == (b"1",)
    with open_store(home) as store:
        assert store.fact("schema") == str(tables.SCHEMA_VERSION).encode()


def test_database_of_the_first_version_is_brought_up_to_date_and_loses_nothing(home: Home) -> None:
    first_version(home, state=OLD_STATE)
    with open_store(home) as store:
        assert store.fact("schema") == str(tables.SCHEMA_VERSION).encode()
        assert store.config.keep_releases == 10
        state = store.round_state()
        assert state is not None
        assert (state.number, state.phase, state.draw) == (2, "open", None)
        assert [(row.update_id, row.merge, row.state, row.start) for row in store.updates()] == [
            ("u1", 1, "merged", FIRST),
            ("u2", 2, "waiting", SECOND),
        ]
        assert [(key.round, key.seal_seed) for key in store.round_keys()] == [(2, b"seed")]
        assert BlobStore(home.blobs).get(store.current().carry) == b"left over"
        assert store.fact("carry") is None
        assert store.settlement("ada", "t2") == ("", "")
        assert store.round_rows(1)[0]["report"] == {"discarded_energy": 0.5}
        assert store.roll_back(0, by="operator", oldest_after=2).withdrawn == (1,)


def test_candidate_that_was_on_trial_keeps_its_carry(home: Home) -> None:
    first_version(home, state={**OLD_STATE, "phase": "trial"}, seed=b"")
    with closing(sqlite3.connect(home.database)) as connection:
        row = ("3" * 64, 2, 2, SECOND, 10, bytes(32), "candidate", 0, '["u2"]')
        connection.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO facts VALUES ('carry-candidate', ?)", (b"its own",))
        connection.commit()
    with open_store(home) as store:
        candidate = store.candidate(2)
        assert candidate is not None
        assert BlobStore(home.blobs).get(candidate.carry) == b"its own"
        assert [row.state for row in store.updates(2)] == ["merged"]


def test_round_that_had_ended_when_the_old_hub_was_stopped_is_over(home: Home) -> None:
    first_version(home, state={**OLD_STATE, "phase": "trial"}, outcome="rejected", seed=b"")
    with open_store(home) as store:
        state = store.round_state()
        assert state is not None
        assert state.phase == "rejected"


def test_migration_that_was_killed_half_way_is_made_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first_version(home, state=OLD_STATE)

    def power_cut(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("agent.hub.migrations.set_fact", power_cut)
        with pytest.raises(KeyboardInterrupt):
            open_store(home)
    with closing(sqlite3.connect(home.database)) as connection:
        assert connection.execute("SELECT value FROM facts WHERE key = 'schema'").fetchone() == (b"1",)
    with open_store(home) as store:
        assert [row.merge for row in store.updates()] == [1, 2]


def test_members_and_invites_of_a_hub_of_the_second_version_stay_what_they_were(home: Home) -> None:
    public = Identity.generate().public
    old = canonical.encode([public.verify_key, public.seal_key])
    with closing(sqlite3.connect(home.database)) as connection:
        connection.executescript((SCHEMAS / "2.sql").read_text())
        connection.execute("INSERT INTO facts VALUES ('schema', ?), ('config', ?)", (b"2", config(home)))
        connection.execute("INSERT INTO invites VALUES ('ab', ?, 2, 100, 1)", (bytes(32),))
        row = (public.id, old, "ada", "ab", 7, ReplayWindow().to_bytes())
        connection.execute("INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.commit()
    with open_store(home) as store:
        assert store.config.admission == "automatic"
        (ada,) = store.devices()
        assert (ada.public, ada.nickname, ada.standing, ada.changed) == (public, "ada", "member", 7)
        (invite,) = store.invites()
        assert (invite.uses, invite.left, invite.group, invite.state(50)) == (3, 2, "", "open")


def test_migrated_tables_are_those_of_a_new_hub(home: Home, tmp_path: Path) -> None:
    fresh = Home(tmp_path / "fresh")
    fresh.create()
    create_store(fresh).close()
    first_version(home, state=OLD_STATE)
    open_store(home).close()
    shapes = []
    for one in (fresh, home):
        with HubStore(make_engine(one, None), home=one) as store:
            found = inspect(store._engine)
            shapes.append(
                {
                    name: (
                        {
                            column["name"]: (str(column["type"]), column["nullable"])
                            for column in found.get_columns(name)
                        },
                        {str(index["name"]): index["column_names"] for index in found.get_indexes(name)},
                    )
                    for name in found.get_table_names()
                }
            )
    assert shapes[0] == shapes[1]
