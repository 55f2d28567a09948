from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from agent.errors import DiskFullError, ModelError, UnreadableModelError
from agent.llm import shelf as room
from agent.llm.shelf import STALE_SECONDS, Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "home" / "models")


def write(path: Path, data: bytes = b"a model") -> Path:
    path.write_bytes(data)
    return path


def test_model_lies_under_its_hash_and_is_found_by_its_name(shelf: Shelf, tmp_path: Path) -> None:
    model, new = shelf.put(write(tmp_path / "berry.gguf"))
    assert new
    assert model.path.name == f"{hashlib.sha256(b'a model').hexdigest()}.gguf"
    assert model.path.read_bytes() == b"a model"
    assert shelf.find("berry") == shelf.find(model.sha256[:6].upper()) == shelf.models()[0] == model
    assert model.record.origin == str(tmp_path / "berry.gguf")
    assert shelf.directory.stat().st_mode & 0o777 == 0o700


def test_putting_it_twice_changes_nothing_but_the_name_if_one_is_given(shelf: Shelf, tmp_path: Path) -> None:
    first, _new = shelf.put(write(tmp_path / "berry.gguf"))
    copy = write(tmp_path / "copy.gguf")
    assert shelf.put(copy) == (first, False)
    renamed, new = shelf.put(copy, name="bramble berry")
    assert (renamed.name, new, len(shelf.models())) == ("bramble berry", False, 1)
    assert sorted(path.suffix for path in shelf.directory.iterdir()) == ["", ".gguf", ".json"]


@pytest.mark.parametrize("way", ["clone or link", "copy"])
def test_source_stays_and_can_be_removed(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "copy":
        monkeypatch.setattr(room, "_clone", lambda _source, _target: False)
        monkeypatch.setattr(room, "_link", lambda _source, _target: False)
    source = write(tmp_path / "berry.gguf")
    model, _new = shelf.put(source)
    assert source.read_bytes() == b"a model"
    source.unlink()
    assert model.path.read_bytes() == b"a model"


def test_copy_that_does_not_fit_is_refused_before_it_begins(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_clone", lambda _source, _target: False)
    monkeypatch.setattr(room, "_link", lambda _source, _target: False)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 70_000}))
    with pytest.raises(DiskFullError, match=r"berry\.gguf"):
        shelf.put(write(tmp_path / "berry.gguf", bytes(10_000)))
    assert [path.name for path in shelf.directory.iterdir()] == [".unfinished"]


def test_taken_file_is_moved(shelf: Shelf, tmp_path: Path) -> None:
    source = write(tmp_path / "berry.gguf")
    shelf.put(source, take=True)
    assert not source.exists()
    shelf.put(write(source), take=True)
    assert not source.exists()
    assert len(shelf.models()) == 1


def test_other_model_of_the_same_name_gets_a_name_of_its_own(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(write(tmp_path / "berry.gguf"))
    other, _new = shelf.put(write(tmp_path / "berry.gguf", b"another"), stem="berry")
    assert other.name == f"berry-{other.sha256[:8]}"
    with pytest.raises(ModelError, match="another model on the shelf is called 'berry'"):
        shelf.put(write(tmp_path / "third.gguf", b"a third"), name="berry")
    assert len(shelf.models()) == 2


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "-x", "x" * 129, "x\n"])
def test_name_that_could_be_taken_for_something_else_is_refused(shelf: Shelf, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name"):
        shelf.put(write(tmp_path / "berry.gguf"), name=name)


def test_unknown_name_says_what_there_is(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UnreadableModelError, match="'plum' is no model") as refused:
        shelf.find("plum")
    assert "nothing yet" in refused.value.advice
    shelf.put(write(tmp_path / "berry.gguf"))
    with pytest.raises(UnreadableModelError) as refused:
        shelf.find("plum")
    assert "berry" in refused.value.advice


def test_source_that_cannot_be_read_is_named(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UnreadableModelError, match=r"nowhere\.gguf"):
        shelf.put(tmp_path / "nowhere.gguf")


def test_model_whose_name_was_lost_in_a_crash_is_there_and_gets_one_again(shelf: Shelf, tmp_path: Path) -> None:
    source = write(tmp_path / "berry.gguf")
    model, _new = shelf.put(source)
    model.path.with_suffix(".json").write_text("{ torn")
    assert shelf.models()[0].name == model.sha256[:12]
    assert shelf.put(source)[0].name == "berry"


def test_what_was_left_unfinished_long_ago_is_cleared_away(shelf: Shelf, tmp_path: Path) -> None:
    shelf.create()
    old, fresh = write(shelf.new_file()), write(shelf.new_file())
    download = write(shelf.unfinished / "x.part")
    long_ago = time.time() - 2 * STALE_SECONDS
    for path in (old, download):
        os.utime(path, (long_ago, long_ago))
    shelf.put(write(tmp_path / "berry.gguf"))
    assert (old.exists(), fresh.exists(), download.exists()) == (False, True, True)


def test_removed_model_is_gone_and_what_it_came_from_is_not(shelf: Shelf, tmp_path: Path) -> None:
    source = write(tmp_path / "berry.gguf")
    shelf.remove(shelf.put(source)[0])
    assert shelf.models() == []
    assert source.exists()
    assert [path.name for path in shelf.directory.iterdir()] == [".unfinished"]
