"""Real brokers on free loopback ports, for any test that needs one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.transport.embedded import RunningBroker, run_broker

_ROOT = Path(__file__).parents[2]


def _installed(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Give a port that nobody listens on, from below those that systems hand out by themselves.

    Other tests run at the same time: one of those could be taken by any connection until its broker starts, or starts
    again. And not drawn by ``random``, which begins anew with the same seed in each test.
    """
    while True:
        port = 10_240 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@dataclass
class Broker:
    """A broker's process, which can be killed and started again on its port."""

    command: Sequence[str]
    port: int
    log: Path
    other_ports: Sequence[int] = ()
    """Where it must listen too before it counts as started."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=_ROOT)
        deadline = time.monotonic() + 20
        for port in (self.port, *self.other_ports):
            while not _listens(port):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.command[0]} did not start: {self.log.read_text()}")
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """In order, as an operator would."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
        self.process = None


@contextlib.contextmanager
def mosquitto(
    directory: Path,
    config: Sequence[str] = ("allow_anonymous true",),
    *,
    other_ports: Sequence[int] = (),
    environment: Sequence[str] = (),
) -> Iterator[Broker]:
    """Run mosquitto with these configuration lines; skips the test, saying so, where it is not installed.

    Lines of the environment, ``NAME=value``, are added to that of the tests.
    """
    program = _installed("mosquitto")
    if program is None:
        pytest.skip("mosquitto is not installed: install it to run this test against a real broker")
    port = free_port()
    path = directory / f"mosquitto-{port}.conf"
    path.write_text("\n".join(["persistence false", "log_type all", f"listener {port} 127.0.0.1", *config]) + "\n")
    command = ("env", *environment, program, "-c", str(path))
    yield from _running(Broker(command=command, port=port, log=path.with_suffix(".log"), other_ports=other_ports))


@contextlib.contextmanager
def mosquitto_with(config: Path, port: int, *, other_ports: Sequence[int] = ()) -> Iterator[Broker]:
    """Run mosquitto with a configuration that is there already; as root, it keeps root's rights to read the keys."""
    program = _installed("mosquitto")
    if program is None:
        pytest.skip("mosquitto is not installed: install it to run this test against a real broker")
    if os.geteuid() == 0:
        config.write_text(f"{config.read_text()}user root\n")
    command = (program, "-c", str(config))
    yield from _running(Broker(command=command, port=port, log=config.with_suffix(".log"), other_ports=other_ports))


@contextlib.contextmanager
def nats(
    directory: Path, *, config: str = "", ack_wait: str = "30s", other_ports: Sequence[int] = ()
) -> Iterator[Broker]:
    """Run nats-server as an MQTT broker on JetStream; skips the test, saying so, where it is not installed.

    What a client did not acknowledge is sent again when ``ack_wait`` is over, whether it stayed or comes back.
    """
    program = _installed("nats-server")
    if program is None:
        pytest.skip("nats-server is not installed: install it to run this test against its MQTT")
    port, clients = free_port(), free_port()
    path = directory / f"nats-{port}.conf"
    path.write_text(
        f"""
        server_name: bramble
        listen: "127.0.0.1:{clients}"
        jetstream {{ store_dir: "{directory / f"jetstream-{port}"}" }}
        mqtt {{ listen: "127.0.0.1:{port}", ack_wait: "{ack_wait}" }}
        {config}
        """
    )
    command = (program, "-c", str(path))
    yield from _running(Broker(command=command, port=port, log=path.with_suffix(".log"), other_ports=other_ports))


@contextlib.contextmanager
def amqtt(directory: Path) -> Iterator[Broker]:
    """Run amqtt's own broker, with the community's access rules (``tests.transport.amqtt_broker``)."""
    port = free_port()
    command = (sys.executable, "-m", "tests.transport.amqtt_broker", str(port))
    yield from _running(Broker(command=command, port=port, log=directory / f"amqtt-{port}.log"))


def _running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@contextlib.asynccontextmanager
async def cut_off(broker: Broker) -> AsyncIterator[None]:
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
