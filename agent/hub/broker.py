"""The embedded broker as a process: beside the hub, on loopback, with passwords that follow from the hub's secret.

It holds nothing that must survive: retained messages are published again by the hub, and whatever a device did not get
a receipt for, it sends again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

from agent.errors import BrokerUnreachableError
from agent.events import Events
from agent.hub.fence import Fence
from agent.hub.store import open_store
from agent.paths import Home, explained_disk
from agent.transport.address import BrokerAddress
from agent.transport.embedded import run_broker

START_SECONDS = 20.0
RESTARTS = 3
"""How often a broker that does not start is tried again, a second apart."""


async def keep_broker(home: Home, *, port: int, events: Events, ready: asyncio.Future[str]) -> None:
    """Keep a broker process running, on the same port, however often it dies; ends when cancelled.

    Args:
        home: the hub's state directory.
        port: on loopback; 0 picks a free one at first.
        events: told of starts and deaths.
        ready: gets the broker's URL once it listens.

    Raises:
        BrokerUnreachableError: it does not start.
    """
    failures = 0
    while True:
        try:
            async with _broker_process(home, port=port, events=events) as (url, process):
                port, failures = BrokerAddress.parse(url).port, 0
                if not ready.done():
                    ready.set_result(url)
                status = await process.wait()
        except BrokerUnreachableError:
            # Its predecessor may hold the port for a moment after it was killed.
            failures += 1
            if failures > RESTARTS:
                raise
            await asyncio.sleep(1.0)
            continue
        events.say("broker-lost", f"the embedded broker ended with status {status}; starting it again", status=status)


async def serve(home: Home, *, port: int = 0) -> None:
    """Run the embedded broker of the hub in ``home`` until cancelled; prints where as a line of JSON.

    Args:
        home: the hub's state directory.
        port: on loopback; 0 takes the one that the hub's configuration names, or any free one.
    """
    with open_store(home) as store:
        wanted = port or configured_port(store.config.broker)
        fence = Fence(store)
        async with run_broker(authenticate=fence.authenticate, allowed=fence.allowed, port=wanted) as running:
            print(json.dumps({"event": "broker-ready", "url": running.url}), flush=True)  # noqa: T201 (its result)
            await asyncio.Event().wait()


def configured_port(url: str) -> int:
    """Give the port in a URL; 0 where it names none yet."""
    return 0 if url.endswith(":0") else BrokerAddress.parse(url).port


@contextlib.asynccontextmanager
async def _broker_process(
    home: Home, *, port: int, events: Events
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run the broker as a child process and give its URL; it ends with the context, and with this process.

    Raises:
        BrokerUnreachableError: it did not start, with what it said.
    """
    command = ["-m", "agent.cli", "broker", "run", "--home", str(home.root), "--port", str(port), "--with-parent"]
    log = home.root / "broker.log"  # a file, because nobody would empty a pipe while the broker runs
    with explained_disk(log), log.open("wb") as complaints:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=complaints,
        )
    try:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except TimeoutError:
            line = b""
        if not line:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            words = log.read_text(errors="replace").strip()[-1000:]
            raise BrokerUnreachableError(
                f"the embedded broker did not start: {words or 'it said nothing'}",
                advice="If its port is taken, create the hub with another one (`bramble hub init --port`).",
            )
        url = str(json.loads(line)["url"])
        events.say("broker-ready", f"embedded broker at {url}", url=url, pid=process.pid)
        yield url, process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()
            await process.wait()
