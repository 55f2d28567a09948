"""`bramble key`: what a backup holds, and that a restore never takes anything away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.key import key
from agent.crypto import keyfile
from agent.crypto.passphrases import FILE_VARIABLE
from agent.errors import AlreadyInitialisedError, CorruptStateError, LockedKeysError, StateError
from agent.federation.store import open_device_store
from agent.paths import Home
from agent.service import create_device
from tests.federation.desk import Desk


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "words"
    path.write_text("correct horse battery\n")
    path.chmod(0o600)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    return path


def said(*arguments: str | Path) -> str:
    done = CliRunner().invoke(key, [str(word) for word in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def member(tmp_path: Path) -> Home:
    """A device with keys that is in a community."""
    desk = Desk(tmp_path / "ada")
    with desk.store:
        keyfile.Identity.generate().save(desk.home.keys)
        desk.home.settings.write_text('nickname = "ada"\n')
    return desk.home


def test_keys_are_shown_and_protected_and_taken_out_again(tmp_path: Path, words: Path) -> None:
    device = create_device(Home(tmp_path / "a"))
    place = ("--home", tmp_path / "a")
    assert "readable by you alone" in said("show", *place)
    assert "nobody can reset it" in said("protect", *place, "--passphrase")
    shown = json.loads(said("show", *place, "--json"))
    assert (shown["id"], shown["protection"], shown["role"]) == (device.device, "passphrase", "device")
    words.write_text("something else\n")
    with pytest.raises(LockedKeysError, match="does not open"):
        said("protect", *place, "--none")
    words.write_text("correct horse battery\n")
    said("protect", *place, "--none")
    assert "readable by you alone" in said("show", *place)


@pytest.mark.usefixtures("words")
def test_backup_brings_keys_and_membership_to_another_machine(tmp_path: Path, member: Home) -> None:
    file = tmp_path / "ada.backup"
    said("backup", file, "--home", member.root)
    assert file.stat().st_mode & 0o777 == 0o600
    identity = keyfile.load(member.keys)
    assert all(seed not in file.read_bytes() for seed in identity.seeds)
    assert b"Hedge" not in file.read_bytes()
    with pytest.raises(AlreadyInitialisedError):
        said("backup", file, "--home", member.root)
    other = Home(tmp_path / "new machine")
    assert "a member of 'Hedge'" in said("restore", file, "--home", other.root)
    assert keyfile.load(other.keys).seeds == identity.seeds
    with open_device_store(other) as store, open_device_store(member) as before:
        assert store.membership == before.membership
    assert other.settings.read_text() == 'nickname = "ada"\n'


@pytest.mark.usefixtures("words")
def test_restore_refuses_to_overwrite_and_to_read_what_is_no_backup(tmp_path: Path, member: Home, words: Path) -> None:
    file = tmp_path / "ada.backup"
    said("backup", file, "--home", member.root)
    with pytest.raises(AlreadyInitialisedError):
        said("restore", file, "--home", member.root)
    with pytest.raises(StateError, match="backup of a device"):
        said("restore", file, "--home", tmp_path / "hub", "--hub")
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptStateError):
        said("restore", tmp_path / "cut", "--home", tmp_path / "b")
    words.write_text("something else\n")
    with pytest.raises(LockedKeysError):
        said("restore", file, "--home", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("words")
def test_restore_that_was_killed_is_done_again(tmp_path: Path, member: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "ada.backup", Home(tmp_path / "b")
    said("backup", file, "--home", member.root)

    def killed(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    for step in (
        "agent.keykeeping.write_atomically",
        "agent.keykeeping.open_device_store",
        "agent.crypto.keyfile.save",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(step, killed)
            CliRunner().invoke(key, ["restore", str(file), "--home", str(other.root)])
        assert not (other.keys / keyfile.KEY_FILE).exists()
    said("restore", file, "--home", other.root)
    assert keyfile.load(other.keys).public == keyfile.load(member.keys).public
