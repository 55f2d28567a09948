"""Real `bramble` processes, heard through the events they print. What is started here is ended here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PATIENCE = 120.0
"""Seconds that any single thing may take; the machine may be busy."""

LEAVING = 60.0
"""Seconds to leave in after SIGTERM: a worker may take twenty for its checkpoint."""


def command(*arguments: str | Path) -> list[str]:
    """Give the command line of `bramble` with the interpreter that runs the tests."""
    return [sys.executable, "-m", "agent.cli", *map(str, arguments)]


def bramble(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, answer: str = "", timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run one `bramble` command to its end."""
    return subprocess.run(
        command(*arguments),
        input=answer,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def succeed(*arguments: str | Path, **options: Any) -> str:
    """Run one `bramble` command that must work, and give what it printed."""
    done = bramble(*arguments, **options)
    assert done.returncode == 0, f"bramble {arguments} ended with {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a process, and its place among all that it said."""

    place: int
    name: str
    fields: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


@dataclass(kw_only=True, eq=False)
class Running:
    """A `bramble` process that runs until it is stopped or killed. A context manager.

    Attributes:
        name: for messages.
        arguments: of the command; ``--events-json`` is among them.
        log: gets what it writes to standard error.
    """

    name: str
    arguments: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: list[Running] = field(default_factory=list)
    """Others that must be well while this one is waited for; it joins them when it starts."""
    said: list[Said] = field(default_factory=list)
    process: subprocess.Popen[str] = field(init=False)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command(*self.arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        self._listener = threading.Thread(target=self._listen, name=f"listen-{self.name}", daemon=True)
        self._listener.start()
        self.beside.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        status = self.stop()
        assert kind is not None or status in {None, 0}, f"{self.name} did not leave in order: {status}"

    def stop(self) -> int | None:
        """Ask it to leave, as a service manager does, and give its status; kill it if it stays. None if it was gone."""
        asked = self.process.poll() is None
        if asked:
            self.process.terminate()
            try:
                self.process.wait(LEAVING)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._end()
        return self.process.returncode if asked else None

    def kill(self) -> None:
        """Kill it (-9), as a power cut does."""
        self.process.kill()
        self._end()

    def _end(self) -> None:
        if self in self.beside:
            self.beside.remove(self)
        self.process.wait(20)
        self._listener.join(20)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def wait_for(
        self,
        *names: str,
        after: Said | None = None,
        where: Callable[[Said], bool] = lambda _said: True,
        within: float = PATIENCE,
    ) -> Said:
        """Give the first event of one of these names that fits, said already or still to come.

        Raises:
            AssertionError: the process ended, or time did, before it was said.
        """
        place = 0 if after is None else after.place + 1
        ends = time.monotonic() + within
        with self._news:
            while True:
                for said in self.said[place:]:
                    place = said.place + 1
                    if said.name in names and where(said):
                        return said
                if self._closed:
                    raise AssertionError(f"{self.name} ended without saying {names}; {self._last_words()}")
                for other in self.beside:
                    assert other.process.poll() is None, f"{other.name} ended meanwhile; {other._last_words()}"
                if not self._news.wait(min(1.0, max(0.0, ends - time.monotonic()))) and time.monotonic() >= ends:
                    everything = "\n".join(f"{other.name}: {other._last_words()}" for other in self.beside)
                    raise AssertionError(f"{self.name} did not say {names} in {within} s; {everything}")

    def all(self, name: str) -> list[Said]:
        """Give all events of a name so far."""
        with self._news:
            return [said for said in self.said if said.name == name]

    def wait_ended(self, within: float = PATIENCE) -> int:
        """Wait until it has ended by itself, and give its exit status."""
        if self in self.beside:
            self.beside.remove(self)
        return self.process.wait(within)

    def _last_words(self) -> str:
        events = "\n".join(f"{said.name} {dict(said.fields)}" for said in self.said[-15:])
        return f"its last events:\n{events}\nand words:\n{self.log.read_text(errors='replace')[-3000:]}"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed under us
            for line in self.process.stdout:
                with self.log.open("a") as log:
                    log.write(line)
                with contextlib.suppress(json.JSONDecodeError):
                    fields = json.loads(line)
                    with self._news:
                        self.said.append(Said(len(self.said), str(fields.pop("event")), fields))
                        self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()


def end_now(pid: int) -> None:
    """Kill (-9) a process by its id."""
    os.kill(pid, signal.SIGKILL)
