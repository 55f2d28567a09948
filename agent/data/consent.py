"""What the owner said yes to: which folder, when, who, and what they were shown before they did.

Text is read for training only under a consent that stands. A consent that was withdrawn stays in the book as history.
The tables are made by the migration of the device's database, which runs :data:`SCHEMA`.
"""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.data.documents import Survey
from agent.errors import ConsentMissingError

SCHEMA: tuple[str, ...] = (
    """
    CREATE TABLE consent (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        granted INTEGER NOT NULL,      -- Unix time, seconds
        granted_by TEXT NOT NULL,
        shown TEXT NOT NULL,           -- JSON: the survey
        withdrawn INTEGER
    ) STRICT
    """,
    "CREATE UNIQUE INDEX consent_standing ON consent (path) WHERE withdrawn IS NULL",
)
_SKIPPED_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Consent:
    """One entry of the book.

    Attributes:
        path: absolute path of the folder or file.
        granted: when, in seconds since 1970.
        granted_by: user name of whoever said yes.
        files: how many files of text they were shown.
        characters: characters of text in them.
        withdrawn: when it was withdrawn, or None while it stands.
    """

    path: Path
    granted: int
    granted_by: str
    files: int
    characters: int
    withdrawn: int | None = None


class ConsentBook:
    """The consents in a device's database.

    Args:
        connection: to a database in which :data:`SCHEMA` was run. Each change is one transaction of its own, or part of
            the one that the caller has open.
        clock: seconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, *, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._clock = clock

    def grant(self, path: Path, survey: Survey, *, granted_by: str | None = None) -> Consent:
        """Write down a yes. A consent for the same path that stands already is replaced, and kept as history.

        Args:
            path: the folder or file; made absolute.
            survey: what the owner was shown.
            granted_by: user name of whoever said yes; whoever runs this process if not given.
        """
        absolute, now = _absolute(path), self._now()
        granted_by = granted_by or _user()
        with self._transaction():
            self._withdraw(absolute, now)
            self._connection.execute(
                "INSERT INTO consent (path, granted, granted_by, shown) VALUES (?, ?, ?, ?)",
                (str(absolute), now, granted_by, _shown(survey)),
            )
        return Consent(absolute, now, granted_by, survey.files, survey.characters)

    def withdraw(self, path: Path) -> None:
        """End the consent for a path: its text is not read from now on.

        Raises:
            ConsentMissingError: there is none that stands.
        """
        with self._transaction():
            ended = self._withdraw(_absolute(path), self._now())
        if not ended:
            raise _missing(path, [consent.path for consent in self.sources()])

    def sources(self) -> list[Consent]:
        """Give the consents that stand, sorted by path."""
        return self._read("WHERE withdrawn IS NULL ORDER BY path")

    def history(self) -> list[Consent]:
        """Give every consent there ever was, in order of time."""
        return self._read("ORDER BY granted, id")

    def require(self, paths: Sequence[Path]) -> None:
        """Check that each path is, or lies under, one whose consent stands.

        Raises:
            ConsentMissingError: one does not.
        """
        sources = [consent.path for consent in self.sources()]
        for path in paths:
            absolute = _absolute(path)
            if not any(absolute == source or source in absolute.parents for source in sources):
                raise _missing(path, sources)

    def _read(self, rest: str) -> list[Consent]:
        rows = self._connection.execute(
            f"SELECT path, granted, granted_by, shown, withdrawn FROM consent {rest}"  # noqa: S608
        )
        found = []
        for path, granted, granted_by, shown, withdrawn in rows:
            counts = json.loads(shown)
            found.append(Consent(Path(path), granted, granted_by, counts["files"], counts["characters"], withdrawn))
        return found

    def _withdraw(self, path: Path, now: int) -> int:
        changed = self._connection.execute(
            "UPDATE consent SET withdrawn = ? WHERE path = ? AND withdrawn IS NULL", (now, str(path))
        )
        return changed.rowcount

    def _now(self) -> int:
        return int(self._clock())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin and end a transaction, unless the caller has one open."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            yield


def _absolute(path: Path) -> Path:
    """Resolve links, so that the same folder has one name."""
    return path.expanduser().resolve()


def _user() -> str:
    """Give the user's name, or number where the system knows no name for it (as in containers)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _shown(survey: Survey) -> str:
    """Give the survey as JSON, with the first of what was skipped."""
    skipped = [[str(item.path), item.reason] for item in survey.skipped[:_SKIPPED_SHOWN]]
    counts = {key: value for key, value in asdict(survey).items() if key != "skipped"}
    return json.dumps({**counts, "skipped": skipped, "skipped_count": len(survey.skipped)}, sort_keys=True)


def _missing(path: Path, sources: Sequence[Path]) -> ConsentMissingError:
    known = ", ".join(str(source) for source in sources) or "nothing"
    return ConsentMissingError(
        f"no consent stands for the text in {path} (there is for: {known})",
        advice=f"Run `bramble data add {path}` to look at what is there and allow its use.",
    )
