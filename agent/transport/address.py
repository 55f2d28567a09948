"""What a broker's URL says: ``mqtt[s]://[user[:password]@]host[:port]``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from agent.errors import PlaintextRefusedError, SettingsError

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_ADVICE = "Write it as mqtts://host:port, or mqtt://host:port for a broker on this machine."


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker listens, and as whom to go there."""

    host: str
    port: int
    tls: bool
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
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or port == 0:
            raise SettingsError("The broker's address is not one that MQTT uses.", advice=_ADVICE)
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            tls=parts.scheme == "mqtts",
            username=unquote(parts.username) if parts.username is not None else None,
            password=unquote(parts.password) if parts.password is not None else None,
        )

    @property
    def shown(self) -> str:
        """The address for people: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the broker is on this machine, going by the address alone."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_privacy(self, *, allow_plaintext: bool) -> None:
        """Refuse to go to another machine unencrypted.

        Raises:
            PlaintextRefusedError: unless ``allow_plaintext``.
        """
        if not (self.tls or self.is_loopback or allow_plaintext):
            raise PlaintextRefusedError(
                f"{self.shown} is another machine, and the connection would not be encrypted.",
                advice="Use mqtts://, or allow plain text explicitly if the network between is yours alone.",
            )


def without_credentials(url: str) -> str:
    """Give a broker's URL for people: without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
