from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent.crypto.identity import Identity, PublicIdentity, Role, device_id, is_device_id
from agent.crypto.sealing import SealKey
from agent.errors import (
    AlreadyInitialisedError,
    CorruptStateError,
    DiskFullError,
    MalformedMessageError,
    NotInitialisedError,
    StateError,
)

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def test_the_id_is_the_hash_of_the_public_key_in_base32() -> None:
    identity = Identity.generate()
    assert identity.id == identity.public.id == device_id(identity.public.verify_key)
    assert is_device_id(identity.id)
    assert identity.short_id == identity.id[:10]
    assert device_id(bytes(32)) == "mzuhvlpymk6xo3epygfy5h4oeaejofefn3rdhm4qfjmr2dk7fesq"


def test_what_it_signs_is_its_own() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"message")
    assert identity.public.has_signed(signature, b"message")
    assert not identity.public.has_signed(signature, b"messagf")
    assert not other.public.has_signed(signature, b"message")
    assert not identity.public.has_signed(b"", b"message")


@pytest.mark.parametrize("role", ["hub", "fleet-manager"])
def test_keys_of_one_role_sign_nothing_that_another_role_could_have_said(role: Role) -> None:
    device = Identity.generate()
    signing, seal = device.seeds
    other = Identity(signing_seed=signing, seal_key=SealKey.from_seed(seal), role=role)
    assert not other.public.has_signed(device.sign(b"message"), b"message")
    assert other.public.has_signed(other.sign(b"message"), b"message")
    assert other.public.fingerprint() != device.public.fingerprint()
    assert PublicIdentity.decode(other.public.encode()).role == role


def test_saved_keys_load_as_the_same_identity(tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "state" / "keys")
    loaded = Identity.load(tmp_path / "state" / "keys")
    assert loaded.public == identity.public
    assert loaded.seal_key.seed == identity.seal_key.seed
    assert [file.name for file in (tmp_path / "state" / "keys").iterdir()] == ["identity.key"]


@posix
def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    path = Identity.generate().save(tmp_path / "keys")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with pytest.raises(StateError) as caught:
        Identity.load(tmp_path / "keys")
    assert "chmod 600" in caught.value.advice


def test_existing_keys_are_never_overwritten(tmp_path: Path) -> None:
    first = Identity.generate()
    first.save(tmp_path)
    with pytest.raises(AlreadyInitialisedError):
        Identity.generate().save(tmp_path)
    assert Identity.load(tmp_path).id == first.id


def test_existing_keys_are_not_overwritten_without_hard_links_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    first = Identity.generate()
    first.save(tmp_path)
    with pytest.raises(AlreadyInitialisedError):
        Identity.generate().save(tmp_path)
    assert Identity.load(tmp_path).id == first.id


def test_no_keys_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotInitialisedError):
        Identity.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "long"])
def test_damaged_keys_are_said_so(tmp_path: Path, damage: str) -> None:
    path = Identity.generate().save(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "empty": b"", "other": b"\xa0", "long": data + bytes(9000)}[damage])
    with pytest.raises(CorruptStateError):
        Identity.load(tmp_path)


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        Identity.generate().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_public_identity_travels_whole_or_not_at_all() -> None:
    public = Identity.generate().public
    data = public.encode()
    assert PublicIdentity.decode(data) == public
    for broken in (data[:-1], data + b"\0", b"\x82\x41a\x41b", b"\x80", b""):
        with pytest.raises(MalformedMessageError):
            PublicIdentity.decode(broken)
    with pytest.raises(ValueError, match="public identity"):
        PublicIdentity(b"", b"")


def test_the_fingerprint_pins_both_keys() -> None:
    one, two = Identity.generate().public, Identity.generate().public
    mixed = PublicIdentity(one.verify_key, two.seal_key)
    assert len({one.fingerprint(), two.fingerprint(), mixed.fingerprint()}) == 3


def test_secrets_are_not_printed() -> None:
    identity = Identity.generate()
    shown = repr(identity) + repr(identity.seal_key) + str(identity)
    assert identity.seal_key.seed.hex()[:16] not in shown
    assert identity._signing_seed.hex()[:16] not in shown
    assert repr(identity._signing_seed)[2:10] not in shown
