"""TLS to a broker: version 1.3 at least, the host's name always checked, with a certificate of ours where we have one.

There is no setting for less. TLS 1.2 shows a client's certificate, and with it the device's name, to everybody on the
way, and brokers have spoken 1.3 for years.

In TLS 1.3 a server says what it does not like about a client's certificate after the handshake is over for the client
(RFC 8446 section 4.4.2.4), as an alert in answer to the first bytes of MQTT. paho takes it for a broken connection, so
the line remembers it (:attr:`Line.alert`).
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import StateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Whom to trust, and as whom to come.

    Attributes:
        authority: PEM of the only certificate authority to trust; the system's if None.
        certificate: PEM file of our certificate; None to show none.
        key: PEM file of its private key.
    """

    authority: bytes | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Make the context of one connection.

        Raises:
            StateError: our certificate or key cannot be used.
        """
        trusted = None if self.authority is None else self.authority.decode("ascii", "replace")
        context = ssl.create_default_context(cadata=trusted)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.sslsocket_class = Line
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as cause:
                raise StateError(
                    f"the certificate in {self.certificate} or its key cannot be used: {cause}",
                    advice="Join the community again to get a new one; a hub makes its own when it starts.",
                ) from cause
        return context


class Line(ssl.SSLSocket):
    """A TLS connection that remembers why its other end did not like it."""

    alert: ssl.SSLError | None = None
    """What ended it, where that was TLS; an alert of the other end most of the time."""

    def recv(self, *arguments: Any) -> bytes:
        """Read, and remember what goes wrong."""
        try:
            return super().recv(*arguments)
        except ssl.SSLError as error:
            self._note(error)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """Write, and where the other end has hung up look whether it said why."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            with contextlib.suppress(OSError):
                self.recv(1)
            raise

    def _note(self, error: ssl.SSLError) -> None:
        passing = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
        if self.alert is None and not isinstance(error, passing):
            self.alert = error
