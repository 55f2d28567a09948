"""The charter that an owner agreed to is kept; another one needs the owner's word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import NotJoinedError
from agent.federation.agreed import accept, differences, note, offered
from agent.governance.charter import Charter
from tests.federation.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.connection.close()


def changed(desk: Desk, **fields: object) -> Charter:
    return desk.store.membership.charter.model_copy(update=fields)


def test_charter_that_is_the_agreed_one_changes_nothing(desk: Desk) -> None:
    assert not note(desk.store, 5, changed(desk))
    assert offered(desk.store) is None
    with pytest.raises(NotJoinedError, match="no other charter"):
        accept(desk.store, Path("base"))


def test_another_charter_waits_beside_the_agreed_one_until_it_is_accepted(desk: Desk) -> None:
    before, other = desk.store.membership.charter, changed(desk, licence="all rights reserved", max_update_norm=1e6)
    assert note(desk.store, 5, other)
    assert desk.store.membership.charter == before
    waits = offered(desk.store)
    assert waits is not None
    assert (waits.counter, waits.charter) == (5, other)
    with desk.store.transaction():
        desk.store.replace_moments("both", "ab" * 32)
    assert accept(desk.store, Path("base")).charter == other
    assert desk.store.membership.charter == other
    assert desk.store.moments("both") is None  # learned under other rules
    assert offered(desk.store) is None


def test_hub_that_goes_back_to_the_agreed_charter_asks_for_nothing_more(desk: Desk) -> None:
    note(desk.store, 5, changed(desk, rank=8))
    assert not note(desk.store, 6, changed(desk))
    assert offered(desk.store) is None


def test_differences_name_each_field_with_what_it_was_and_would_be(desk: Desk) -> None:
    before = desk.store.membership.charter
    rounds = before.rounds.model_copy(update={"quorum": 1})
    found = differences(before, changed(desk, licence="other", rounds=rounds))
    assert found == [("licence", "CC-BY-SA-4.0", "other"), ("rounds.quorum", 2, 1)]
