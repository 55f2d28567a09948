"""Bytes under lock: encrypted by a passphrase that a person knows, or by a key that lies somewhere else.

A passphrase becomes a key by scrypt (RFC 7914), whose cost in memory is what makes guessing dear. The box says with
which parameters; they are bound to what is inside, and bounded when a box is read, so that a made-up file cannot have
its reader take gigabytes or hours.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from agent.crypto import canonical
from agent.errors import CorruptStateError, LockedKeysError, ProtocolError

MAX_BOX_BYTES = 256 * 1024
MAX_MEMORY_BYTES = 256 * 1024 * 1024
"""What scrypt may take for a box that was read: a passphrase's box made here takes 64 MiB."""

MAX_PASSES = 8
SHORTEST_PASSPHRASE = 8
"""Characters. Scrypt makes each guess cost a tenth of a second or more; it cannot make a short word long."""

_VERSION = 1
_LOG_N, _BLOCK, _PASSES = 16, 8, 2
"""64 MiB and two passes: what OWASP's password storage cheat sheet gives for machines that lack 128 MiB to spare."""

_KEY_BYTES, _NONCE_BYTES, _SALT_BYTES = 32, 12, 16

LockedBy = Literal["passphrase", "key"]


@dataclass(frozen=True, slots=True)
class Box:
    """Something locked.

    Attributes:
        by: what opens it: a passphrase, or 32 bytes that are kept elsewhere.
        log_n: scrypt's cost as a power of two; 0 where no passphrase is used, as are the next two.
        block: scrypt's block size.
        passes: scrypt's parallelisation, done one after the other here.
        salt: 16 bytes; empty where no passphrase is used.
        nonce: of ChaCha20-Poly1305, 12 bytes.
        sealed: what is inside.
    """

    by: LockedBy
    log_n: int
    block: int
    passes: int
    salt: bytes
    nonce: bytes
    sealed: bytes

    def encode(self) -> bytes:
        """Give the canonical form."""
        head = [_VERSION, self.by, self.log_n, self.block, self.passes]
        return canonical.encode([*head, self.salt, self.nonce, self.sealed])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` gave.

        Raises:
            CorruptStateError: it is no box, or asks for more memory or time than any box that is made here.
        """
        try:
            value = canonical.decode(data, max_bytes=MAX_BOX_BYTES, max_items=16)
        except ProtocolError:
            value = None
        match value:
            case [
                1,
                "passphrase" | "key" as by,
                int(log_n),
                int(block),
                int(passes),
                bytes(salt),
                bytes(nonce),
                rest,
            ] if isinstance(rest, bytes) and len(nonce) == _NONCE_BYTES:
                box = cls("passphrase" if by == "passphrase" else "key", log_n, block, passes, salt, nonce, rest)
            case _:
                raise _damaged("it is cut or changed, or was written by a newer version")
        if not box.is_affordable:
            raise _damaged("it asks for more memory or time than any that is made here")
        return box

    @property
    def is_affordable(self) -> bool:
        """Whether opening it takes no more than it may."""
        if self.by == "key":
            return (self.log_n, self.block, self.passes, self.salt) == (0, 0, 0, b"")
        if len(self.salt) != _SALT_BYTES or not (1 <= self.log_n <= 30 and self.block >= 1):
            return False
        return 128 * self.block << self.log_n <= MAX_MEMORY_BYTES and 1 <= self.passes <= MAX_PASSES

    def bound(self, purpose: str) -> bytes:
        """What is bound to the content beside the key."""
        return canonical.encode(["bramble/locked/1", purpose, self.by, self.log_n, self.block, self.passes, self.salt])


def lock(content: bytes, secret: str | bytes, *, purpose: str) -> bytes:
    """Lock something up.

    Args:
        content: what.
        secret: a passphrase, or a key of 32 bytes.
        purpose: what it is for; it opens for nothing else.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    if isinstance(secret, str):
        box = Box("passphrase", _LOG_N, _BLOCK, _PASSES, secrets.token_bytes(_SALT_BYTES), nonce, b"")
    else:
        box = Box("key", 0, 0, 0, b"", nonce, b"")
    cipher = ChaCha20Poly1305(_key(box, secret))
    sealed = cipher.encrypt(nonce, content, box.bound(purpose))
    return Box(box.by, box.log_n, box.block, box.passes, box.salt, nonce, sealed).encode()


def unlock(box: Box, secret: str | bytes, *, purpose: str) -> bytes:
    """Open a box.

    Raises:
        LockedKeysError: not with this secret, or not for this purpose, or it was changed.
    """
    try:
        return ChaCha20Poly1305(_key(box, secret)).decrypt(box.nonce, box.sealed, box.bound(purpose))
    except (InvalidTag, ValueError) as cause:
        what = "passphrase" if box.by == "passphrase" else "key"
        raise LockedKeysError(
            f"this {what} does not open it",
            advice=f"Give the right {what}. A file that was changed does not open either.",
        ) from cause


def _key(box: Box, secret: str | bytes) -> bytes:
    if isinstance(secret, bytes) != (box.by == "key"):
        raise ValueError("a passphrase is text, a key is bytes")
    if isinstance(secret, bytes):
        return secret
    derive = Scrypt(salt=box.salt, length=_KEY_BYTES, n=1 << box.log_n, r=box.block, p=box.passes)
    return derive.derive(secret.encode())


def _damaged(why: str) -> CorruptStateError:
    return CorruptStateError(f"a locked file cannot be read: {why}", advice="Restore it from a backup.")
