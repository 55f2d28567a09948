"""Who a device or a hub is: a signing key, a seal key, a role, and the id that follows from them.

An identity is made once and kept in one file (:mod:`agent.crypto.keyfile`). Its id is the SHA-256 of its Ed25519 public
key in base32, so nobody can claim an id without the key. Its role is bound into its fingerprint and into everything
that it signs: a device's key never speaks as a hub, though somebody put it into a hub's directory.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NewType, Self, TypeGuard, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.crypto import canonical
from agent.crypto.sealing import PUBLIC_BYTES, SealKey
from agent.errors import MalformedMessageError

DeviceId = NewType("DeviceId", str)
"""52 characters of base32 in lower case, without padding: SHA-256 of the Ed25519 public key."""

Role = Literal["device", "hub", "fleet-manager"]
"""What keys are for. A device's say least; whoever makes others says so."""

VERIFY_KEY_BYTES = 32
SIGNATURE_BYTES = 64
SIGNING_BYTES = 32
SHORT_ID = 10

_PUBLIC_BYTES = 2048
_DEVICE_ID = re.compile(r"[a-z2-7]{52}", re.ASCII)
_FINGERPRINT_DOMAIN = b"bramble/identity/2\0"


def device_id(verify_key: bytes) -> DeviceId:
    """Give the id that belongs to an Ed25519 public key (32 bytes)."""
    return DeviceId(_base32(hashlib.sha256(verify_key).digest()))


def is_device_id(text: str) -> bool:
    """Say whether ``text`` has the form of an id."""
    return _DEVICE_ID.fullmatch(text) is not None


def is_role(text: object) -> TypeGuard[Role]:
    """Say whether ``text`` is a role."""
    return text in get_args(Role)


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """The half of an identity that others may know."""

    verify_key: bytes
    """Ed25519 public key, 32 bytes."""

    seal_key: bytes
    """HPKE public key, 1,216 bytes."""

    role: Role = "device"

    def __post_init__(self) -> None:
        if len(self.verify_key) != VERIFY_KEY_BYTES or len(self.seal_key) != PUBLIC_BYTES:
            raise ValueError("a public identity has a verify key of 32 bytes and a seal key of 1216")

    @property
    def id(self) -> DeviceId:
        """The id of whoever holds the private half."""
        return device_id(self.verify_key)

    @property
    def short_id(self) -> str:
        """The first ten characters of the id, for people to read."""
        return self.id[:SHORT_ID]

    def encode(self) -> bytes:
        """Give the canonical form: ``[role, verify_key, seal_key]``."""
        return canonical.encode([self.role, self.verify_key, self.seal_key])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` gave.

        Raises:
            MalformedMessageError: the bytes are no public identity.
        """
        match canonical.decode(data, max_bytes=_PUBLIC_BYTES):
            case [role, bytes(verify_key), bytes(seal_key)] if is_role(role) and (len(verify_key), len(seal_key)) == (
                VERIFY_KEY_BYTES,
                PUBLIC_BYTES,
            ):
                return cls(verify_key, seal_key, role)
            case _:
                raise MalformedMessageError(
                    "A public identity could not be read.", advice="The sender speaks another protocol; it is dropped."
                )

    def fingerprint(self) -> str:
        """Give 52 characters of base32 that pin both keys and the role at once."""
        return _base32(hashlib.sha256(_FINGERPRINT_DOMAIN + self.encode()).digest())

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Say whether this is the signature (Ed25519, RFC 8032) of whoever holds the private half, in this role."""
        try:
            key = Ed25519PublicKey.from_public_bytes(self.verify_key)
            key.verify(signature, _in_role(self.role, message))
        except (InvalidSignature, ValueError):
            return False
        return True


class Identity:
    """The private half: it signs, and it opens what was sealed for it. Never printed, never sent."""

    __slots__ = ("_signing", "_signing_seed", "public", "seal_key")

    public: PublicIdentity
    seal_key: SealKey

    def __init__(self, *, signing_seed: bytes, seal_key: SealKey, role: Role = "device") -> None:
        self._signing_seed = signing_seed
        self._signing = Ed25519PrivateKey.from_private_bytes(signing_seed)
        self.seal_key = seal_key
        self.public = PublicIdentity(self._signing.public_key().public_bytes_raw(), seal_key.public, role)

    @classmethod
    def generate(cls, role: Role = "device") -> Self:
        """Make fresh keys."""
        return cls(signing_seed=secrets.token_bytes(SIGNING_BYTES), seal_key=SealKey.generate(), role=role)

    @property
    def id(self) -> DeviceId:
        """SHA-256 of the public signing key, in base32."""
        return self.public.id

    @property
    def short_id(self) -> str:
        """The first ten characters of the id, for people to read."""
        return self.public.short_id

    @property
    def role(self) -> Role:
        """What these keys are for."""
        return self.public.role

    @property
    def seeds(self) -> tuple[bytes, bytes]:
        """The secrets that both keys are rebuilt from, 32 and 96 bytes; for the file that keeps them alone."""
        return self._signing_seed, self.seal_key.seed

    def sign(self, message: bytes) -> bytes:
        """Give the 64-byte Ed25519 signature (RFC 8032) of the role and ``message``."""
        return self._signing.sign(_in_role(self.role, message))

    def save(self, directory: Path) -> Path:
        """Write the keys into ``directory``; see :func:`agent.crypto.keyfile.save`."""
        from agent.crypto.keyfile import save  # noqa: PLC0415 (the file knows identities, not the other way round)

        return save(self, directory)

    @classmethod
    def load(cls, directory: Path, role: Role = "device") -> Identity:
        """Read the keys kept in ``directory``; see :func:`agent.crypto.keyfile.load`."""
        from agent.crypto.keyfile import load  # noqa: PLC0415 (likewise)

        return load(directory, role)

    def __repr__(self) -> str:
        return f"Identity({self.short_id})"


def _in_role(role: Role, message: bytes) -> bytes:
    return b"bramble/signed/" + role.encode() + b"\0" + message


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest).decode().lower().rstrip("=")
