"""Keys under lock: who opens them, how a service does without anybody to ask, and that no key is ever overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from agent.crypto import canonical, keyfile
from agent.crypto.identity import Identity
from agent.crypto.keyfile import Lock
from agent.crypto.locking import Box
from agent.crypto.passphrases import CREDENTIALS_VARIABLE, FILE_VARIABLE, ask_passphrase, new_passphrase
from agent.errors import AlreadyInitialisedError, LockedKeysError, StateError

WORDS = "correct horse battery"


class Ring(KeyringBackend):
    """A keyring in memory."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FILE_VARIABLE, CREDENTIALS_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def passphrase_file(directory: Path, words: str = WORDS, mode: int = 0o600) -> Path:
    path = directory / "words"
    path.write_text(f"{words}\n")
    path.chmod(mode)
    return path


def test_keys_under_a_passphrase_open_with_it_and_say_whose_they_are_without(tmp_path: Path) -> None:
    identity = Identity.generate("hub")
    keyfile.save(identity, tmp_path, lock=Lock("passphrase", WORDS))
    found = keyfile.read(tmp_path, "hub")
    assert (found.public, found.protection) == (identity.public, "passphrase")
    assert found.open(WORDS).seeds == identity.seeds
    with pytest.raises(LockedKeysError, match="does not open"):
        found.open("something else")
    data = (tmp_path / keyfile.KEY_FILE).read_bytes()
    assert all(seed not in data for seed in identity.seeds)
    with pytest.raises(LockedKeysError, match="nobody to ask"):
        keyfile.load(tmp_path, "hub")


def test_service_takes_the_passphrase_from_a_file_or_from_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyfile.save(Identity.generate(), tmp_path / "keys", lock=Lock("passphrase", WORDS))
    monkeypatch.setenv(FILE_VARIABLE, str(passphrase_file(tmp_path)))
    assert keyfile.load(tmp_path / "keys")
    monkeypatch.delenv(FILE_VARIABLE)
    passphrase_file(tmp_path).rename(tmp_path / "bramble-passphrase")
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path))
    assert keyfile.load(tmp_path / "keys")


def test_passphrase_that_others_can_read_or_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(passphrase_file(tmp_path, mode=0o644)))
    with pytest.raises(LockedKeysError, match="can be read by others"):
        ask_passphrase("it")
    monkeypatch.setenv(FILE_VARIABLE, str(passphrase_file(tmp_path, words="")))
    with pytest.raises(LockedKeysError, match="holds no passphrase"):
        ask_passphrase("it")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(LockedKeysError, match="cannot be read"):
        ask_passphrase("it")
    monkeypatch.setenv(FILE_VARIABLE, str(passphrase_file(tmp_path, words="short")))
    with pytest.raises(LockedKeysError, match="8 is the least"):
        new_passphrase("it")


def test_keys_in_the_keyring_open_where_that_is_and_nowhere_else(tmp_path: Path) -> None:
    before, ring = keyring.get_keyring(), Ring()
    try:
        keyring.set_keyring(ring)
        identity = Identity.generate()
        keyfile.save(identity, tmp_path, lock=Lock("keyring"))
        assert keyfile.load(tmp_path).seeds == identity.seeds
        ring.kept.clear()
        with pytest.raises(LockedKeysError, match="holds no key"):
            keyfile.load(tmp_path)
    finally:
        keyring.set_keyring(before)


def test_keys_of_another_role_are_not_used(tmp_path: Path) -> None:
    Identity.generate("hub").save(tmp_path)
    with pytest.raises(StateError, match="are a hub's, not a device's"):
        keyfile.load(tmp_path, "device")


def test_public_half_that_was_exchanged_does_not_open(tmp_path: Path) -> None:
    """Whoever may write the file cannot have its owner sign as somebody else unawares."""
    mine, other = Identity.generate(), Identity.generate()
    keyfile.save(mine, tmp_path / "mine", lock=Lock("passphrase", WORDS))
    found = keyfile.read(tmp_path / "mine", "device")
    with pytest.raises(LockedKeysError):
        keyfile.KeyFile(other.public, "passphrase", found.box, b"").open(WORDS)


def test_protecting_replaces_the_file_whole_and_saving_never_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity.generate()
    identity.save(tmp_path)
    before = (tmp_path / keyfile.KEY_FILE).read_bytes()

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            keyfile.protect(identity, tmp_path, Lock("passphrase", WORDS))
    assert (tmp_path / keyfile.KEY_FILE).read_bytes() == before
    keyfile.protect(identity, tmp_path, Lock("passphrase", WORDS))
    assert keyfile.read(tmp_path, "device").open(WORDS).seeds == identity.seeds
    assert (tmp_path / keyfile.KEY_FILE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(AlreadyInitialisedError):
        keyfile.save(Identity.generate(), tmp_path)


def test_file_from_before_keys_had_a_role_is_read_as_what_it_is_used_for(tmp_path: Path) -> None:
    identity = Identity.generate()
    signing, seal = identity.seeds
    data = canonical.encode({"version": 1, "signing_seed": signing, "seal_seed": seal})
    (tmp_path / keyfile.KEY_FILE).write_bytes(data)
    (tmp_path / keyfile.KEY_FILE).chmod(0o600)
    assert keyfile.load(tmp_path, "hub").role == "hub"
    assert keyfile.load(tmp_path, "device").public == identity.public


def test_box_in_a_key_file_is_bounded_too(tmp_path: Path) -> None:
    identity = Identity.generate()
    keyfile.save(identity, tmp_path, lock=Lock("passphrase", WORDS))
    path = tmp_path / keyfile.KEY_FILE
    box = keyfile.read(tmp_path, "device").box
    assert box is not None
    hostile = Box("passphrase", 30, 8, 1, box.salt, box.nonce, box.sealed)
    data = path.read_bytes().replace(box.encode(), hostile.encode())
    path.write_bytes(data)
    with pytest.raises(StateError):
        keyfile.read(tmp_path, "device")
