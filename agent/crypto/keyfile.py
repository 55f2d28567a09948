"""The file that keeps an identity: mode 0600 in a directory of mode 0700, plain or under lock.

Under lock the public half stays readable, so that whoever only wants to know who this is need not ask for a passphrase.
A file is complete and on the disk before it has its name, and existing keys are replaced by their own successor alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.crypto import canonical
from agent.crypto.identity import SIGNING_BYTES, Identity, PublicIdentity, Role, is_role
from agent.crypto.locking import Box, lock, unlock
from agent.crypto.passphrases import ask_passphrase, keyring_key, new_keyring_key
from agent.crypto.sealing import SEED_BYTES, SealKey
from agent.errors import (
    AlreadyInitialisedError,
    CorruptStateError,
    DiskFullError,
    NotInitialisedError,
    ProtocolError,
    StateError,
)
from agent.paths import read_secret

KEY_FILE = "identity.key"
NEXT_FILE = "identity.next"
"""Where keys wait that are to succeed the ones in use."""

Protection = Literal["none", "passphrase", "keyring"]

_VERSION = 2
_FILE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Lock:
    """How keys are kept.

    Attributes:
        protection: in the clear for their owner alone, under a passphrase, or under a key in the system's keyring.
        passphrase: where it is one.
    """

    protection: Protection = "none"
    passphrase: str = ""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Keys as they lie on the disk.

    Attributes:
        public: who they are.
        protection: what opens them.
        box: the private half under lock; None where it is in the clear.
        seeds: the private half in the clear; empty where it is under lock.
    """

    public: PublicIdentity
    protection: Protection
    box: Box | None
    seeds: bytes

    def open(self, passphrase: str | None = None) -> Identity:
        """Give the keys; asks for the passphrase where it is not given.

        Raises:
            LockedKeysError: the passphrase is wrong, or there is none, or no keyring.
        """
        if self.box is None:
            return _identity(self.seeds, self.public)
        if self.protection == "keyring":
            secret: str | bytes = keyring_key(self.public.id)
        else:
            secret = ask_passphrase(f"the keys of {_whose(self.public)}") if passphrase is None else passphrase
        return _identity(unlock(self.box, secret, purpose=_purpose(self.public)), self.public)


def save(identity: Identity, directory: Path, *, name: str = KEY_FILE, lock: Lock | None = None) -> Path:
    """Write keys that are not there yet into ``directory`` (made with mode 0700) and give the file's path (mode 0600).

    Raises:
        AlreadyInitialisedError: there are keys already.
        DiskFullError: no room.
        LockedKeysError: there is no keyring to lock them with.
    """
    data = _encode(identity, lock or Lock())
    with _explained(directory):
        _make_private(directory)
        _write(directory / name, data, replace=False)
    return directory / name


def protect(identity: Identity, directory: Path, lock: Lock) -> None:
    """Keep the same keys in another way: under another passphrase, in the keyring, in the clear.

    Raises:
        DiskFullError: no room; they are kept as before.
        LockedKeysError: there is no keyring.
    """
    data = _encode(identity, lock)
    with _explained(directory):
        _write(directory / KEY_FILE, data, replace=True)


def succeed(directory: Path) -> None:
    """Put the keys that wait as the next ones in the place of those in use; nothing where none wait."""
    with _explained(directory), contextlib.suppress(FileNotFoundError):
        (directory / NEXT_FILE).replace(directory / KEY_FILE)
        _sync(directory)


def read(directory: Path, role: Role, *, name: str = KEY_FILE) -> KeyFile:
    """Read the keys kept in ``directory``, without opening them.

    Raises:
        NotInitialisedError: there are none.
        StateError: others on this machine can read them, or they are for another role.
        CorruptStateError: the file is damaged.
    """
    path = directory / name
    try:
        data, mode = read_secret(path, _FILE_BYTES)
    except FileNotFoundError as error:
        raise NotInitialisedError(
            f"There are no keys in {directory}.", advice="Run the init command first, or point to another directory."
        ) from error
    except OSError as error:
        raise StateError(
            f"The keys in {path} cannot be read: {error.strerror}.", advice="Check who owns the file."
        ) from error
    if mode:
        raise StateError(
            f"The keys in {path} can be read by others on this machine (mode {mode}).",
            advice=f"If nobody else had access, run: chmod 600 {path}. Otherwise make a new identity.",
        )
    found = _decode(data, path, role)
    if found.public.role != role:
        raise StateError(
            f"The keys in {path} are a {found.public.role}'s, not a {role}'s.",
            advice="Point to the directory of the other one with --home. Keys of one role are never used for another.",
        )
    return found


def load(directory: Path, role: Role = "device") -> Identity:
    """Read the keys kept in ``directory`` and open them.

    Raises:
        NotInitialisedError, StateError, CorruptStateError: as :func:`read`.
        LockedKeysError: they are under lock, and what opens them is not there or wrong.
    """
    return read(directory, role).open()


def secret_form(identity: Identity) -> bytes:
    """Give the private half as bytes, for a place that is locked itself."""
    return b"".join(identity.seeds)


def from_secret_form(data: bytes, public: PublicIdentity) -> Identity:
    """Rebuild keys from their private half.

    Raises:
        CorruptStateError: it is not the private half of these public keys.
    """
    return _identity(data, public)


def _encode(identity: Identity, kept: Lock) -> bytes:
    public, seeds = identity.public, secret_form(identity)
    if kept.protection == "none":
        signing, seal = identity.seeds
        return canonical.encode(
            {"version": _VERSION, "role": identity.role, "signing_seed": signing, "seal_seed": seal}
        )
    secret = new_keyring_key(public.id) if kept.protection == "keyring" else kept.passphrase
    box = lock(seeds, secret, purpose=_purpose(public))
    return canonical.encode(
        {"version": _VERSION, "public": public.encode(), "protection": kept.protection, "locked": box}
    )


def _decode(data: bytes, path: Path, role: Role) -> KeyFile:
    try:
        value = canonical.decode(data, max_bytes=_FILE_BYTES)
    except ProtocolError:
        value = None
    match value:
        case {"version": 1, "signing_seed": bytes(signing), "seal_seed": bytes(seal)} if _fit(signing, seal):
            return _plain(signing, seal, role)  # from before keys had a role: they are what they are used for
        case {"version": 2, "role": said, "signing_seed": bytes(signing), "seal_seed": bytes(seal)} if is_role(
            said
        ) and _fit(signing, seal):
            return _plain(signing, seal, said)
        case {
            "version": 2,
            "public": bytes(encoded),
            "protection": "passphrase" | "keyring" as protection,
            "locked": bytes(locked),
        }:
            with contextlib.suppress(ProtocolError):
                how: Protection = "keyring" if protection == "keyring" else "passphrase"
                box = Box.decode(locked)
                if (box.by == "key") == (how == "keyring"):
                    return KeyFile(PublicIdentity.decode(encoded), how, box, b"")
    raise CorruptStateError(
        f"The keys in {path} are damaged, or were written by a newer version.",
        advice="Restore the file from a backup. A lost identity cannot be made again.",
    )


def _fit(signing: bytes, seal: bytes) -> bool:
    return (len(signing), len(seal)) == (SIGNING_BYTES, SEED_BYTES)


def _plain(signing: bytes, seal: bytes, role: Role) -> KeyFile:
    identity = Identity(signing_seed=signing, seal_key=SealKey.from_seed(seal), role=role)
    return KeyFile(identity.public, "none", None, signing + seal)


def _identity(seeds: bytes, public: PublicIdentity) -> Identity:
    signing, seal = seeds[:SIGNING_BYTES], seeds[SIGNING_BYTES:]
    if _fit(signing, seal):
        identity = Identity(signing_seed=signing, seal_key=SealKey.from_seed(seal), role=public.role)
        if identity.public == public:
            return identity
    raise CorruptStateError(
        "The private keys are not those of the public ones beside them.", advice="Restore the file from a backup."
    )


def _purpose(public: PublicIdentity) -> str:
    return f"keys/{public.role}/{public.id}"


def _whose(public: PublicIdentity) -> str:
    return f"{public.role} {public.short_id}"


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise AlreadyInitialisedError(
            f"There are keys in {directory} already.",
            advice="Use them, or choose another state directory. Keys are never overwritten.",
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"The disk has no room for the keys in {directory}.", advice="Free some space and try again."
            ) from error
        raise StateError(
            f"The keys could not be written to {directory}: {error.strerror}.",
            advice="Check that the directory is yours and can be written to.",
        ) from error


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix":
        directory.chmod(0o700)


def _write(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a file: temporary name, fsync, then its name, then the directory. Without ``replace`` it must be new."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _give_name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync(path.parent)


def _sync(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
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
