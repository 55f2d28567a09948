"""The keys of a device or a hub, put together from its state directory: what `bramble key` does.

A backup is one file under a passphrase: keys, and of a device its membership. It is of no use without the passphrase,
and it does not get old: counters never fall below the clock, so who is restored from it is heard at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.crypto import keyfile
from agent.crypto.identity import Identity, PublicIdentity, Role, is_role
from agent.crypto.keyfile import Lock, Protection
from agent.crypto.locking import MAX_BOX_BYTES, Box, lock, unlock
from agent.crypto.passphrases import ask_passphrase, forget_keyring_key, new_passphrase
from agent.errors import (
    AlreadyInitialisedError,
    BrokerUnreachableError,
    CorruptStateError,
    NotInitialisedError,
    ProtocolError,
    StateError,
)
from agent.federation.making import whole_database
from agent.federation.standing import require_part
from agent.federation.store import Membership, open_device_store
from agent.federation.succession import ASK_SECONDS, ask, finish, is_agreed
from agent.hub import succession
from agent.hub.store import open_store
from agent.paths import Home, exclusive, explained_disk, write_atomically
from agent.running import run_until_signalled
from agent.service import device_link

_PURPOSE = "bramble/backup/1"


class _Backup(BaseModel):
    """What is in a backup, before it is locked."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    version: int = 1
    role: str
    public: bytes
    seeds: bytes
    settings: str = ""
    membership: Membership | None = None


@dataclass(frozen=True, slots=True)
class KeysShown:
    """What may be told of keys.

    Attributes:
        waiting: keys that are to succeed these are there; the change is to be finished.
    """

    role: Role
    id: str
    fingerprint: str
    protection: Protection
    path: Path
    waiting: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """What came out of a backup."""

    public: PublicIdentity
    community: str
    base: Path | None


def show_keys(home: Home, role: Role) -> KeysShown:
    """Say whose keys are in a state directory, and how they are kept; opens nothing.

    Raises:
        NotInitialisedError, StateError, CorruptStateError: there are none, or they cannot be read.
    """
    found = keyfile.read(home.keys, role)
    return KeysShown(
        role=role,
        id=found.public.id,
        fingerprint=found.public.fingerprint(),
        protection=found.protection,
        path=home.keys / keyfile.KEY_FILE,
        waiting=(home.keys / keyfile.NEXT_FILE).exists(),
    )


def protect_keys(home: Home, role: Role, protection: Protection) -> None:
    """Keep the keys under a new passphrase, in the keyring, or in the clear.

    Killed anywhere, the keys are kept in the old way or in the new one, whole.

    Raises:
        AlreadyRunningError: the device or hub runs.
        LockedKeysError: they could not be opened, or not be locked.
        StateError: keys wait to succeed them.
    """
    with exclusive(home):
        found = keyfile.read(home.keys, role)
        if (home.keys / keyfile.NEXT_FILE).exists():
            raise StateError("a change of keys was begun", advice="Finish it first: bramble key rotate")
        identity = found.open()
        chosen = new_passphrase(f"the keys of {role} {identity.short_id}") if protection == "passphrase" else ""
        keyfile.protect(identity, home.keys, Lock(protection, chosen))
        if found.protection == "keyring" and protection != "keyring":
            forget_keyring_key(identity.id)


def back_up(home: Home, role: Role, file: Path) -> PublicIdentity:
    """Write the keys, and a device's membership and settings, into one file under a passphrase of its own.

    Raises:
        AlreadyInitialisedError: the file is there.
        LockedKeysError: the keys could not be opened, or there is no passphrase.
    """
    if file.exists():
        raise AlreadyInitialisedError(f"{file} is there already", advice="Give another name. Nothing was changed.")
    identity = keyfile.load(home.keys, role)
    membership, settings = None, ""
    if role == "device":
        with open_device_store(home) as store:
            membership = store.membership if store.is_member else None
        settings = home.settings.read_text(encoding="utf-8") if home.settings.is_file() else ""
    content = _Backup(
        role=role,
        public=identity.public.encode(),
        seeds=keyfile.secret_form(identity),
        settings=settings,
        membership=membership,
    )
    words = new_passphrase(f"the backup {file.name}")
    write_atomically(file, lock(content.model_dump_json().encode(), words, purpose=_PURPOSE))
    return identity.public


def restore(home: Home, role: Role, file: Path) -> Restored:
    """Put keys, and a device's membership and settings, where there are none.

    A hub's database is restored by itself, from a copy of ``state.db``; a device's is made where there is none. Keys
    come last, so that a restore that was killed is simply done again.

    Raises:
        AlreadyInitialisedError: there are keys, or a device; nothing is changed.
        CorruptStateError: the file is no backup.
        LockedKeysError: the passphrase is wrong.
        StateError: it cannot be read, or is of another role.
    """
    if (home.keys / keyfile.KEY_FILE).exists():
        raise AlreadyInitialisedError(
            f"there are keys in {home.root} already",
            advice="Restore into another directory with --home. Nothing was changed.",
        )
    backup = _open_backup(file)
    if not is_role(backup.role) or backup.role != role:
        raise StateError(
            f"{file} is the backup of a {backup.role}, not of a {role}",
            advice="Give --hub for a hub's, and leave it away for a device's. Nothing was changed.",
        )
    public = PublicIdentity.decode(backup.public)
    identity = keyfile.from_secret_form(backup.seeds, public)
    home.create()
    if role == "device":
        if backup.settings and not home.settings.exists():
            write_atomically(home.settings, backup.settings.encode())
        if not home.database.exists():
            with whole_database(home), open_device_store(home, create=True):
                pass
        with open_device_store(home) as store:
            if backup.membership is not None and not store.is_member:
                store.save_membership(backup.membership)
    keyfile.save(identity, home.keys)
    base = backup.membership.base if backup.membership is not None else None
    return Restored(public, backup.membership.charter.name if backup.membership else "", base)


def _open_backup(file: Path) -> _Backup:
    with explained_disk(file), file.open("rb") as opened:
        data = opened.read(MAX_BOX_BYTES + 1)
    box = Box.decode(data)
    content = unlock(box, ask_passphrase(f"the backup {file.name}"), purpose=_PURPOSE)
    try:
        backup = _Backup.model_validate_json(content)
        PublicIdentity.decode(backup.public)
    except (ValidationError, ProtocolError) as cause:
        raise CorruptStateError(
            f"{file} was written by another version", advice="Use the version of Bramble that wrote it, or a newer one."
        ) from cause
    return backup


def opened_like(home: Home, role: Role) -> tuple[Identity, Lock]:
    """Open the keys, and say how their successors are to be kept: in the same way.

    Raises:
        LockedKeysError: they could not be opened.
    """
    found = keyfile.read(home.keys, role)
    if found.protection != "passphrase":
        return found.open(), Lock(found.protection)
    words = ask_passphrase(f"the keys of {role} {found.public.short_id}")
    return found.open(words), Lock("passphrase", words)


@dataclass(frozen=True, slots=True)
class Rotated:
    """Keys that came after others.

    Attributes:
        old: id before, and ``new`` the one from now on.
    """

    old: str
    new: str


def rotate_device(home: Home, *, patience: float = ASK_SECONDS) -> Rotated:
    """Give a device new keys: the old ones sign them, and the hub takes them for the old ones.

    Killed anywhere, or cut off from the hub, it is finished by calling it again.

    Raises:
        AlreadyRunningError: the device runs.
        BrokerUnreachableError: the hub did not answer; the new keys wait.
        LockedKeysError: the keys could not be opened.
    """
    with exclusive(home), open_device_store(home) as store:
        before = keyfile.read(home.keys, "device").public.id
        if is_agreed(store):  # an attempt that was killed once the hub had said yes
            finish(store)
            return Rotated(before, keyfile.read(home.keys, "device").public.id)
        old, kept = opened_like(home, "device")
        new = _next_keys(home, "device", kept)
        if store.is_member:
            require_part(store)
            link = device_link(store, old, patient=False)
            why = run_until_signalled(ask(store, old, new, link, patience=patience))
            if why or not is_agreed(store):
                raise BrokerUnreachableError(
                    f"the hub has not taken the new keys yet: {why or 'it was interrupted'}",
                    advice="Run `bramble key rotate` again. Until then this device takes no part: the hub may know the"
                    " new keys already.",
                )
            finish(store)
        else:
            keyfile.succeed(home.keys)
        if kept.protection == "keyring":
            forget_keyring_key(old.id)
    return Rotated(old.id, new.id)


def rotate_hub(home: Home) -> Rotated:
    """Give a hub new keys: the old ones sign them, and devices follow when it runs again.

    Killed anywhere, it is finished by calling it again, or by running the hub.

    Raises:
        AlreadyRunningError: the hub runs.
        LockedKeysError: the keys could not be opened.
    """
    with open_store(home) as store, exclusive(home):
        before = keyfile.read(home.keys, "hub").public.id
        if succession.finish(store):
            return Rotated(before, keyfile.read(home.keys, "hub").public.id)
        old, kept = opened_like(home, "hub")
        new = _next_keys(home, "hub", kept)
        succession.write_down(store, old, new)
        succession.finish(store)
        if kept.protection == "keyring":
            forget_keyring_key(old.id)
    return Rotated(old.id, new.id)


def _next_keys(home: Home, role: Role, kept: Lock) -> Identity:
    """Give the keys that are to succeed, on the disk: those of an earlier attempt, if there was one."""
    try:
        waiting = keyfile.read(home.keys, role, name=keyfile.NEXT_FILE)
    except NotInitialisedError:
        identity = Identity.generate(role)
        keyfile.save(identity, home.keys, name=keyfile.NEXT_FILE, lock=kept)
        return identity
    return waiting.open(kept.passphrase or None)
