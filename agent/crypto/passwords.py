"""Broker passwords that nobody has to keep a table of.

The broker and the hub share one secret; the password of every user follows from it, so enrolling a device writes
nothing on the broker.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

_DOMAIN = b"bramble/broker/1\0"


def derive_password(secret: bytes, user: str) -> str:
    """Give the broker password of ``user``: 43 characters of base64url of HMAC-SHA256 (RFC 2104)."""
    digest = hmac.new(secret, _DOMAIN + user.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def check_password(secret: bytes, user: str, password: str) -> bool:
    """Say whether ``password`` is the one of ``user``, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(derive_password(secret, user).encode(), password.encode("utf-8", "surrogatepass"))
