"""The demo's processes: each a real `bramble` command, heard through the events it prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from agent.device.footprint import resident_mb
from agent.errors import DemoError

Hear: TypeAlias = Callable[[str, dict[str, Any]], None]

SAMPLE_SECONDS = 0.5
STOP_SECONDS = 15.0


async def bramble(*arguments: str, log: Path) -> str:
    """Run one `bramble` command to its end and give what it printed.

    Raises:
        DemoError: it failed; its own words are in the message.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    with log.open("ab") as file:
        file.write(b"$ bramble " + " ".join(arguments).encode() + b"\n" + err + out)
    if process.returncode:
        raise DemoError(
            f"`bramble {' '.join(arguments[:2])}` ended with status {process.returncode}:"
            f" {err.decode(errors='replace').strip()[-600:]}",
            advice=f"The whole log is in {log}.",
        )
    return out.decode()


@dataclass(slots=True)
class Running:
    """A `bramble` process that runs until it is stopped.

    Attributes:
        name: for the table.
        arguments: of the command.
        log: gets everything it prints.
        hear: called with the process's name and each event.
        peak_mb: largest resident size seen, in MiB, by process id of this process and its workers.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    hear: Hear
    environment: Mapping[str, str] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    last_words: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _pids: dict[str, int] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Start it."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent.cli",
            *self.arguments,
            "--with-parent",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment},
            limit=1 << 20,
        )
        self._pids[self.name] = self.process.pid
        self._tasks = [
            asyncio.create_task(self._listen(), name=f"demo-listen-{self.name}"),
            asyncio.create_task(self._complaints(), name=f"demo-stderr-{self.name}"),
            asyncio.create_task(self._sample(), name=f"demo-sample-{self.name}"),
        ]

    async def stop(self) -> None:
        """Ask it to leave, and see that it does."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.process = None

    def ended(self) -> DemoError | None:
        """Give an error where it ended by itself."""
        if self.process is None or self.process.returncode is None:
            return None
        return DemoError(
            f"the {self.name} process ended with status {self.process.returncode}: {' '.join(self.last_words)[-600:]}",
            advice=f"The whole log is in {self.log}.",
        )

    async def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            with self.log.open("ab") as file:
                file.write(line)
            try:
                event = json.loads(line)
                name = str(event.pop("event"))
            except (ValueError, KeyError, AttributeError):
                continue
            if name in {"worker", "broker-ready"} and "pid" in event:
                self._pids["broker" if name == "broker-ready" else f"{self.name} worker"] = int(event["pid"])
            self.hear(name, event)

    async def _complaints(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.last_words.append(line.decode(errors="replace").strip())
            with self.log.open("ab") as file:
                file.write(line)

    async def _sample(self) -> None:
        """Note the largest resident size, of this process and of those it says it started."""
        while True:
            for name, pid in self._pids.items():
                size = resident_mb(pid)
                if size is not None:
                    self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), size)
            await asyncio.sleep(SAMPLE_SECONDS)
