from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.data.consent import SCHEMA, ConsentBook
from agent.data.documents import Skipped, Survey
from agent.errors import ConsentMissingError

SURVEY = Survey(files=2, size=30, characters=28, by_suffix={".md": 2}, skipped=(Skipped(Path("a.bin"), "is not text"),))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(params=[None, ""], ids=["autocommit", "deferred"])
def connection(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=request.param)
    for statement in SCHEMA:
        connection.execute(statement)
    connection.commit()
    yield connection
    connection.close()


@pytest.fixture
def book(connection: sqlite3.Connection) -> ConsentBook:
    return ConsentBook(connection, clock=Clock())


def test_a_yes_is_kept_with_who_when_and_what_was_shown(
    book: ConsentBook, connection: sqlite3.Connection, tmp_path: Path
) -> None:
    given = book.grant(tmp_path, SURVEY, granted_by="ada")
    assert book.sources() == [given]
    assert (given.granted_by, given.granted, given.files, given.characters) == ("ada", 1_001, 2, 28)
    (shown,) = connection.execute("SELECT shown FROM consent").fetchone()
    assert "is not text" in shown
    assert not connection.in_transaction


def test_withdrawing_ends_it_and_keeps_the_history(book: ConsentBook, tmp_path: Path) -> None:
    book.grant(tmp_path, SURVEY, granted_by="ada")
    book.withdraw(tmp_path)
    assert book.sources() == []
    assert [consent.withdrawn for consent in book.history()] == [1_002]
    with pytest.raises(ConsentMissingError):
        book.require([tmp_path])


def test_a_second_yes_replaces_the_first(book: ConsentBook, tmp_path: Path) -> None:
    book.grant(tmp_path, SURVEY, granted_by="ada")
    book.grant(tmp_path, SURVEY, granted_by="bob")
    assert [consent.granted_by for consent in book.sources()] == ["bob"]
    assert [consent.granted_by for consent in book.history()] == ["ada", "bob"]


def test_one_folder_has_one_name(book: ConsentBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, link = tmp_path / "notes", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    book.grant(link, SURVEY, granted_by="ada")
    monkeypatch.chdir(tmp_path)
    book.require([Path("notes"), folder / "deep" / "file.md", link])
    book.withdraw(Path("notes"))
    assert book.sources() == []


def test_text_beside_the_folder_is_not_covered(book: ConsentBook, tmp_path: Path) -> None:
    book.grant(tmp_path / "notes", SURVEY, granted_by="ada")
    for path in (tmp_path, tmp_path / "notes-2", tmp_path / "notes" / ".." / "mail"):
        with pytest.raises(ConsentMissingError) as caught:
            book.require([path])
        assert "bramble data add" in caught.value.advice


def test_withdrawing_what_was_never_given_says_so(book: ConsentBook, tmp_path: Path) -> None:
    with pytest.raises(ConsentMissingError, match="nothing"):
        book.withdraw(tmp_path)


def test_a_grant_is_part_of_the_caller_s_transaction(
    book: ConsentBook, connection: sqlite3.Connection, tmp_path: Path
) -> None:
    connection.execute("BEGIN")
    book.grant(tmp_path, SURVEY, granted_by="ada")
    connection.rollback()
    assert book.history() == []
