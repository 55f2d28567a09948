"""The process that serves: its socket, its end. Nothing is loaded before the address is known to be free."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn

from agent.errors import ServingError, SettingsError
from agent.events import Events
from agent.serving.app import build_app
from agent.serving.catalogue import Catalogue
from agent.serving.engine import Engine
from agent.serving.guard import is_loopback

GRACE = 5.0
"""Seconds that answers have to finish in unless told otherwise."""

_BACKSTOP = 3
_CONNECTIONS = 256
"""What may be connected at once: each may bring a body of a megabyte before it is told that the queue is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to serve, and to whom.

    Attributes:
        host: name or address to bind to.
        port: 0 to have one picked.
        key: that every request must bring; None for anybody on this machine.
    """

    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = None

    def bind(self) -> socket.socket:
        """Take the address.

        Raises:
            SettingsError: others could reach it and no key is set, or there is no such host.
            ServingError: somebody else has it.
        """
        if self.key is not None and (len(self.key) < 8 or not self.key.isascii() or not self.key.isprintable()):
            raise SettingsError(
                "the API key is too short, or has characters that a header cannot carry",
                advice="Use at least 8 ASCII characters, such as the output of `openssl rand -hex 16`.",
            )
        if not is_loopback(self.host) and self.key is None:
            raise SettingsError(
                f"other machines could reach {self.host}, and no API key is set",
                advice="Set one in BRAMBLE_API_KEY, or stay on this machine with --host 127.0.0.1.",
            )
        try:
            family, _, _, _, where = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as cause:
            raise SettingsError(
                f"there is no host {self.host!r} to serve on", advice="Give --host an address of this machine."
            ) from cause
        try:
            return socket.create_server(where[:2], family=family, backlog=128)
        except OSError as cause:
            raise _taken(self, cause) from cause


def serve(*, address: Address, engine: Engine, catalogue: Catalogue, events: Events, grace: float = GRACE) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        address: where.
        engine: not yet open.
        catalogue: what to offer.
        events: told when it is ready.
        grace: seconds that answers have to finish in once the server is asked to stop; then they are cut.

    Raises:
        SettingsError, ServingError: the address cannot be used.
        BrambleError: the base or its adapters cannot.
    """
    with address.bind() as listening:
        models = [model.id for model in catalogue.models()]
        with engine:
            app = build_app(engine=engine, catalogue=catalogue, host=address.host, key=address.key)
            config = uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=math.ceil(grace) + _BACKSTOP,
            )
            server = _Server(config, engine=engine, events=events, grace=grace)
            server.ready = _ready(listening, models)
            asyncio.run(server.serve(sockets=[listening]))


def _ready(listening: socket.socket, models: Sequence[str]) -> tuple[str, list[str]]:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", list(models)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves in order and with status 0 when it is asked to."""

    ready: tuple[str, list[str]]

    def __init__(self, config: uvicorn.Config, *, engine: Engine, events: Events, grace: float) -> None:
        super().__init__(config)
        self._grace = grace
        self._engine = engine
        self._events = events

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Stop in order; at once when asked again. uvicorn's own would raise the signal again afterwards."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        url, models = self.ready
        self._events.say("serving", f"{', '.join(models)} at {url} (Ctrl-C stops)", url=url, models=list(models))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let answers finish for a while, cut the rest."""
        self._events.say("stopping", "stopping")
        self._engine.refuse_waiting()
        cut = asyncio.get_running_loop().call_later(0 if self.force_exit else self._grace, self._engine.stop)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()


def _taken(address: Address, cause: OSError) -> ServingError:
    where = f"port {address.port} of {address.host}"
    if cause.errno == errno.EADDRINUSE or (sys.platform == "win32" and cause.errno == errno.EACCES):
        return ServingError(
            f"{where} is taken by another program",
            advice="Choose another one with --port, or --port 0 to have one picked.",
        )
    return ServingError(
        f"cannot serve on {where}: {cause.strerror or cause}",
        advice="Choose an address of this machine with --host, and a --port above 1023.",
    )
