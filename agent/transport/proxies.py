"""Which proxy leads to a broker, going by the environment, and how to get through it.

The variables are those that other programs use. A connection to a broker is a tunnel whatever it carries, so the first
of these that is set decides, in upper or lower case: ``mqtt_proxy``, ``https_proxy``, ``all_proxy``. ``no_proxy`` names
hosts and domains that are reached directly. A broker on this machine never goes through a proxy, and ``http_proxy`` is
not looked at: web servers set it from what a visitor says (CVE-2016-5385).

A proxy is spoken to in HTTP's CONNECT (RFC 9110 section 9.3.6), by the standard library, or in SOCKS 4 or 5 (RFC 1928).
"""

from __future__ import annotations

import base64
import http.client
import socket
import urllib.request
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from agent.errors import SettingsError
from agent.transport.address import BrokerAddress

Kind: TypeAlias = Literal["http", "socks5", "socks5h", "socks4", "socks4a"]

SCHEMES = ("mqtt", "https", "all")
"""Whose variables count, the first that is set."""

_PORTS: dict[str, int] = {"http": 80, "socks5": 1080, "socks5h": 1080, "socks4": 1080, "socks4a": 1080}
_ADVICE = "Write it as http://host:port or socks5h://host:port, or name the broker in no_proxy to reach it directly."


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy on the way to a broker. With ``socks5h`` and ``socks4a`` it is the proxy that looks up the name."""

    kind: Kind
    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The proxy for people: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"

    def connect(self, host: str, port: int, seconds: float) -> socket.socket:
        """Open a connection through this proxy.

        Args:
            host: where to, as the proxy sees it.
            port: likewise.
            seconds: how long each step may take.

        Raises:
            OSError: the proxy does not answer, or does not let us through; it names the proxy.
        """
        try:
            return self._tunnel(host, port, seconds) if self.kind == "http" else self._socks(host, port, seconds)
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ProxyFailedError(f"the proxy {self.shown} does not lead there: {why}") from error

    def _tunnel(self, host: str, port: int, seconds: float) -> socket.socket:
        headers: dict[str, str] = {}
        if self.username is not None:
            pair = f"{self.username}:{self.password or ''}".encode()
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        connection.set_tunnel(host, port, headers)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return cast("socket.socket", connection.sock)

    def _socks(self, host: str, port: int, seconds: float) -> socket.socket:
        from python_socks import ProxyError, ProxyType  # noqa: PLC0415 - most devices need none
        from python_socks.sync import Proxy as SocksProxy  # noqa: PLC0415

        proxy = SocksProxy(
            ProxyType.SOCKS5 if self.kind.startswith("socks5") else ProxyType.SOCKS4,
            self.host,
            self.port,
            username=self.username,
            password=self.password,
            rdns=self.kind in ("socks5h", "socks4a"),
        )
        try:
            return cast("socket.socket", proxy.connect(host, port, timeout=seconds))
        except ProxyError as error:
            raise OSError(str(error)) from error


class ProxyFailedError(OSError):
    """A proxy did not let us through. Says so without the proxy's credentials."""


def proxy_for(address: BrokerAddress) -> Proxy | None:
    """Give the proxy that the environment wants for a broker; None to go there directly.

    Where no variable is set, Windows and macOS are asked for their own settings.

    Raises:
        SettingsError: the variable that counts names no proxy that can be used.
    """
    if address.is_loopback:
        return None
    named = address.host if ":" in address.host else f"{address.host}:{address.port}"
    if urllib.request.proxy_bypass(named):
        return None
    proxies = urllib.request.getproxies()
    for scheme in SCHEMES:
        if proxies.get(scheme):
            return _parse(proxies[scheme], f"{scheme}_proxy")
    return None


def _parse(url: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{variable} names a proxy that cannot be read: {error}.", advice=_ADVICE) from error
    kind = "socks5h" if parts.scheme == "socks" else parts.scheme
    if kind not in _PORTS or not parts.hostname:
        raise SettingsError(
            f"{variable} names a proxy of a kind that cannot be used to reach a broker"
            f" ({parts.scheme or 'no scheme'}://{parts.hostname or ''}).",
            advice=_ADVICE,
        )
    return Proxy(
        kind=cast("Kind", kind),
        host=parts.hostname,
        port=port or _PORTS[kind],
        username=unquote(parts.username) if parts.username is not None else None,
        password=unquote(parts.password) if parts.password is not None else None,
    )
