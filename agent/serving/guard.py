"""Who may ask: programs on this machine, or whoever has the key.

A page in a browser can make its own site's name mean 127.0.0.1 (DNS rebinding), and then read what a server on this
machine answers. So a server on loopback answers only to loopback's own names, and no server here allows other origins
(CORS). Requests that cost time must be JSON by name, which a page of another origin cannot send without asking first.
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.serving.refusals import RequestRefusedError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Say whether a host's name or address means this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through to an application, or answers them with a refusal.

    Args:
        app: the application.
        host: what the server is bound to.
        key: that every request must bring as its bearer token; None where none is asked for.
    """

    def __init__(self, app: ASGIApp, *, host: str, key: str | None) -> None:
        self._app = app
        self._names = _LOOPBACK_NAMES | {host.lower()} if is_loopback(host) else None
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            self._check(Headers(scope=scope))
        except RequestRefusedError as error:
            response = JSONResponse(error.as_json(), error.status, headers=error.headers)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        named = headers.get("host", "")
        if self._names is not None and _name(named) not in self._names:
            raise RequestRefusedError(
                f"this server answers on loopback, not as {named[:80]!r}",
                advice="Use http://127.0.0.1 or http://localhost. To be reached by another name, start it with --host.",
                status=403,
                reason="host_not_allowed",
            )
        if self._key is not None and not hmac.compare_digest(_token(headers), self._key):
            raise RequestRefusedError(
                "the API key is missing or wrong",
                advice="Send `Authorization: Bearer KEY` with the key that this server was started with.",
                status=401,
                reason="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _name(host: str) -> str:
    """Give the name in a Host header (RFC 9110, section 7.2), without the port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _token(headers: Headers) -> bytes:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
