"""Real brokers on free loopback ports, for any test that needs one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.transport.embedded import RunningBroker, run_broker

_MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mosquitto:
    """A mosquitto that can be killed and started again on its port."""

    port: int
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert _MOSQUITTO is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([_MOSQUITTO, "-c", str(self.config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mosquitto did not start: {self.log.read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def mosquitto(directory: Path, config: Sequence[str] = ("allow_anonymous true",)) -> Iterator[Mosquitto]:
    """Run mosquitto with these configuration lines; skips the test, saying so, where it is not installed."""
    if _MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: install it to run this test against a real broker")
    port = free_port()
    path = directory / f"mosquitto-{port}.conf"
    path.write_text("\n".join(["persistence false", "log_type all", f"listener {port} 127.0.0.1", *config]) + "\n")
    broker = Mosquitto(port=port, config=path, log=directory / f"mosquitto-{port}.log")
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@contextlib.asynccontextmanager
async def cut_off(broker: Mosquitto) -> AsyncIterator[None]:
    """The broker is dead inside, and back after."""
    await asyncio.to_thread(broker.kill)
    yield
    await asyncio.to_thread(broker.start)


@contextlib.asynccontextmanager
async def embedded(**options: Any) -> AsyncIterator[RunningBroker]:
    """Run the embedded broker in this event loop; lets everybody do everything unless told otherwise."""
    options.setdefault("authenticate", lambda _user, _password: True)
    options.setdefault("allowed", lambda _user, _action, _topic: True)
    async with run_broker(**options) as broker:
        yield broker
