"""What a broker's URL says, and a list of them: ``mqtt[s]://[user[:password]@]host[:port]`` or ``ws[s]://…/path``.

Several brokers are one setting, separated by commas; they are tried in that order. They must be one broker to their
clients (a cluster, or bridged), because a hub and its devices may be connected to different ones.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import SplitResult, unquote, urlsplit

from agent.errors import PlaintextRefusedError, SettingsError

_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_ENCRYPTED = ("mqtts", "wss")
_BETWEEN = re.compile(r"\s*,\s*(?=[a-z]+://)|\s+")  # a password may hold a comma, but no URL begins behind that one
_HOST = re.compile(r"[^\s,]+")
_ADVICE = (
    "Write it as mqtts://host:port or wss://host:port/path, or mqtt://host:port for a broker on this machine;"
    " several brokers are separated by commas."
)
MAX_BROKERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker listens, and as whom to go there."""

    host: str
    port: int
    tls: bool
    path: str | None = None
    """Of the WebSocket, its query included; None where MQTT goes over TCP or TLS by itself."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            SettingsError: it is not a broker's URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"The broker's address cannot be read: {error}.", advice=_ADVICE) from error
        if (
            parts.scheme not in _PORTS
            or not _HOST.fullmatch(parts.hostname or "")
            or port == 0
            or not url.isprintable()
            or not _path_fits(parts)
        ):
            raise SettingsError("The broker's address is not one that MQTT uses.", advice=_ADVICE)
        return cls(
            host=str(parts.hostname),
            port=port or _PORTS[parts.scheme],
            tls=parts.scheme in _ENCRYPTED,
            path=_path(parts) if parts.scheme in ("ws", "wss") else None,
            username=unquote(parts.username) if parts.username is not None else None,
            password=unquote(parts.password) if parts.password is not None else None,
        )

    @property
    def transport(self) -> Literal["tcp", "websockets"]:
        """What carries MQTT's packets, in paho's words."""
        return "tcp" if self.path is None else "websockets"

    @property
    def shown(self) -> str:
        """The address for people: without user and password, and without a WebSocket's query, which may be a key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.path is None:
            return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"
        return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}{self.path.partition('?')[0]}"

    @property
    def is_loopback(self) -> bool:
        """Whether the broker is on this machine, going by the address alone."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def exposed(self) -> bool:
        """Whether the connection goes to another machine without TLS."""
        return not (self.tls or self.is_loopback)

    def require_privacy(self, *, allow_plaintext: bool) -> None:
        """Refuse to go to another machine unencrypted.

        Raises:
            PlaintextRefusedError: unless ``allow_plaintext``.
        """
        if self.exposed and not allow_plaintext:
            raise PlaintextRefusedError(
                f"{self.shown} is another machine, and the connection would not be encrypted.",
                advice="Use mqtts:// or wss://, or allow plain text explicitly if the network between is yours alone.",
            )


def parse_brokers(urls: str) -> tuple[BrokerAddress, ...]:
    """Read one URL or several, separated by commas; gives one address at least, in order.

    Raises:
        SettingsError: one of them is not a broker's URL, or there are more than 16.
    """
    brokers = tuple(BrokerAddress.parse(url) for url in _split(urls))
    if len(brokers) > MAX_BROKERS:
        raise SettingsError(f"{len(brokers)} brokers are named; {MAX_BROKERS} are tried at most.", advice=_ADVICE)
    return brokers


def without_credentials(urls: str) -> str:
    """Give a broker's URL, or several, for people: without users, passwords and queries; ``?`` for what is no URL."""
    return ",".join(map(_without_credentials, _split(urls)))


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "?"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _split(urls: str) -> list[str]:
    return _BETWEEN.split(urls.strip().rstrip(","))


def _path_fits(parts: SplitResult) -> bool:
    if parts.fragment:
        return False
    if parts.scheme in ("ws", "wss"):
        return _path(parts).isascii() and _path(parts).isprintable()
    return parts.path in ("", "/") and not parts.query


def _path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
