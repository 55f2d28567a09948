"""Who a device or a hub is: a signing key, a seal key, and the id that follows from them.

An identity is made once and kept in one file, mode 0600, in a directory of mode 0700. Its id is the SHA-256 of its
Ed25519 public key in base32, so nobody can claim an id without the key.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.crypto import canonical
from agent.crypto.sealing import PUBLIC_BYTES, SEED_BYTES, SealKey
from agent.errors import (
    AlreadyInitialisedError,
    CorruptStateError,
    DiskFullError,
    MalformedMessageError,
    NotInitialisedError,
    ProtocolError,
    StateError,
)

DeviceId = NewType("DeviceId", str)
"""52 characters of base32 in lower case, without padding: SHA-256 of the Ed25519 public key."""

KEY_FILE = "identity.key"
VERIFY_KEY_BYTES = 32
SIGNATURE_BYTES = 64
SHORT_ID = 10

_FILE_VERSION = 1
_FILE_BYTES = 1024
_PUBLIC_BYTES = 2048
_SIGNING_BYTES = 32
_DEVICE_ID = re.compile(r"[a-z2-7]{52}", re.ASCII)
_FINGERPRINT_DOMAIN = b"bramble/identity/1\0"


def device_id(verify_key: bytes) -> DeviceId:
    """Give the id that belongs to an Ed25519 public key (32 bytes)."""
    return DeviceId(_base32(hashlib.sha256(verify_key).digest()))


def is_device_id(text: str) -> bool:
    """Say whether ``text`` has the form of an id."""
    return _DEVICE_ID.fullmatch(text) is not None


def verify_signature(verify_key: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether ``signature`` is the Ed25519 signature (RFC 8032) of ``message`` by the holder of ``verify_key``."""
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """The half of an identity that others may know."""

    verify_key: bytes
    """Ed25519 public key, 32 bytes."""

    seal_key: bytes
    """HPKE public key, 1,216 bytes."""

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
        """Give the canonical form: ``[verify_key, seal_key]``."""
        return canonical.encode([self.verify_key, self.seal_key])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` gave.

        Raises:
            MalformedMessageError: the bytes are no public identity.
        """
        match canonical.decode(data, max_bytes=_PUBLIC_BYTES):
            case [bytes(verify_key), bytes(seal_key)] if (len(verify_key), len(seal_key)) == (
                VERIFY_KEY_BYTES,
                PUBLIC_BYTES,
            ):
                return cls(verify_key, seal_key)
            case _:
                raise MalformedMessageError(
                    "A public identity could not be read.", advice="The sender speaks another protocol; it is dropped."
                )

    def fingerprint(self) -> str:
        """Give 52 characters of base32 that pin both keys at once."""
        return _base32(hashlib.sha256(_FINGERPRINT_DOMAIN + self.encode()).digest())


class Identity:
    """The private half: it signs, and it opens what was sealed for it. Never printed, never sent."""

    __slots__ = ("_signing", "_signing_seed", "public", "seal_key")

    public: PublicIdentity
    seal_key: SealKey

    def __init__(self, *, signing_seed: bytes, seal_key: SealKey) -> None:
        self._signing_seed = signing_seed
        self._signing = Ed25519PrivateKey.from_private_bytes(signing_seed)
        self.seal_key = seal_key
        self.public = PublicIdentity(self._signing.public_key().public_bytes_raw(), seal_key.public)

    @classmethod
    def generate(cls) -> Self:
        """Make fresh keys."""
        return cls(signing_seed=secrets.token_bytes(_SIGNING_BYTES), seal_key=SealKey.generate())

    @property
    def id(self) -> DeviceId:
        """SHA-256 of the public signing key, in base32."""
        return self.public.id

    @property
    def short_id(self) -> str:
        """The first ten characters of the id, for people to read."""
        return self.public.short_id

    def sign(self, message: bytes) -> bytes:
        """Give the 64-byte Ed25519 signature (RFC 8032) of ``message``."""
        return self._signing.sign(message)

    def save(self, directory: Path) -> Path:
        """Write the keys into ``directory`` (made with mode 0700) and give the file's path (mode 0600).

        The file is complete and on disk before it gets its name, and an existing one is never replaced.

        Raises:
            AlreadyInitialisedError: there are keys already.
            DiskFullError: no room.
        """
        path = directory / KEY_FILE
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name == "posix":
                directory.chmod(0o700)
            _write_new(path, self._to_bytes())
        except FileExistsError as error:
            raise AlreadyInitialisedError(
                f"There are keys in {directory} already.",
                advice="Use them, or choose another state directory. Keys are never overwritten.",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"The disk has no room for the keys in {directory}.", advice="Free some space and try again."
                ) from error
            raise StateError(
                f"The keys could not be written to {directory}: {error.strerror}.",
                advice="Check that the directory is yours and can be written to.",
            ) from error
        return path

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the keys kept in ``directory``.

        Raises:
            NotInitialisedError: there are none.
            StateError: others on this machine can read them.
            CorruptStateError: the file is damaged.
        """
        path = directory / KEY_FILE
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read(_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise NotInitialisedError(
                f"There are no keys in {directory}.",
                advice="Run the init command first, or point to another directory.",
            ) from error
        except OSError as error:
            raise StateError(
                f"The keys in {path} cannot be read: {error.strerror}.", advice="Check who owns the file."
            ) from error
        if os.name == "posix" and mode & 0o077:
            raise StateError(
                f"The keys in {path} can be read by others on this machine (mode {mode:04o}).",
                advice=f"If nobody else had access, run: chmod 600 {path}. Otherwise make a new identity.",
            )
        return cls._from_bytes(data, path)

    def _to_bytes(self) -> bytes:
        return canonical.encode(
            {"version": _FILE_VERSION, "signing_seed": self._signing_seed, "seal_seed": self.seal_key.seed}
        )

    @classmethod
    def _from_bytes(cls, data: bytes, path: Path) -> Self:
        try:
            value = canonical.decode(data, max_bytes=_FILE_BYTES)
        except ProtocolError:
            value = None
        match value:
            case {"version": 1, "signing_seed": bytes(signing), "seal_seed": bytes(seal)} if (
                len(signing),
                len(seal),
            ) == (_SIGNING_BYTES, SEED_BYTES):
                return cls(signing_seed=signing, seal_key=SealKey.from_seed(seal))
            case _:
                raise CorruptStateError(
                    f"The keys in {path} are damaged, or were written by a newer version.",
                    advice="Restore the file from a backup. A lost identity cannot be made again.",
                )

    def __repr__(self) -> str:
        return f"Identity({self.short_id})"


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest).decode().lower().rstrip("=")


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet: temporary name, fsync, then its name, then the directory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _give_name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _give_name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike rename, this refuses to replace
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if path.exists():  # a file system without hard links
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.rename(path)
