"""A real mosquitto on loopback, and how many bytes went through it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.transport.mqtt import MqttLink

FILES = 16_384
"""Connections that the broker may have open, where the system lets it."""

_LOADED = "$SYS/broker/bytes/"


@dataclass(frozen=True, slots=True)
class Broker:
    """A running mosquitto."""

    url: str
    pid: int


def find_mosquitto() -> str | None:
    """Give the program, if it is installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def running_mosquitto(directory: Path, *lines: str) -> Iterator[Broker]:
    """Run mosquitto while the context lasts, with more lines of configuration.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    program = find_mosquitto()
    if program is None:
        raise RuntimeError("mosquitto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config, log = directory / "mosquitto.conf", directory / "mosquitto.log"
    settings = ("persistence false", "sys_interval 1", f"listener {port} 127.0.0.1", "allow_anonymous true", *lines)
    config.write_text("\n".join(settings) + "\n")
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-c", config], stdout=output, stderr=output, preexec_fn=_more_files)  # noqa: PLW1509 - one call to the system
    try:
        _wait_for(process, port, log)
        yield Broker(url=f"mqtt://127.0.0.1:{port}", pid=process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _more_files() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"mosquitto did not start: {log.read_text()}")
        time.sleep(0.02)


async def bytes_through(broker: Broker, *, within: float = 10.0) -> int:
    """Give how many bytes the broker has received and sent since it started, as it says itself (once a second)."""
    found: dict[str, int] = {}
    async with MqttLink(url=broker.url, client_id="counts-bytes", session_seconds=0) as link:
        await link.subscribe(f"{_LOADED}#")
        async with asyncio.timeout(within):
            async for message in link.messages():
                message.ack()
                if not message.retained:  # a retained one is a second old
                    found[message.topic.removeprefix(_LOADED)] = int(message.payload)
                if found.keys() >= {"received", "sent"}:
                    break
    return found["received"] + found["sent"]
