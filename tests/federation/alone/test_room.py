from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import AlreadyRunningError, StateError
from agent.federation.alone.order import Order, Wanted, take_order
from agent.federation.alone.room import MADE, OutRoom
from agent.paths import Home


@pytest.fixture
def order(tmp_path: Path, tiny_q8: Path) -> Order:
    return take_order(Home(tmp_path / "nobody"), Wanted(sources=(tmp_path,), base=tiny_q8))


def other(order: Order) -> Order:
    return order.model_copy(update={"rank": order.rank + 1})


def make(room: OutRoom, word: str) -> None:
    """Make what a training makes."""
    room.trained.mkdir(exist_ok=True)
    for name in MADE:
        if name == "peft":
            (room.trained / name).mkdir(exist_ok=True)
            (room.trained / name / "adapter_config.json").write_text(word)
        else:
            (room.trained / name).write_text(word)


def read(room: OutRoom) -> set[str]:
    return {path.read_text() for path in room.out.rglob("*") if path.is_file()}


def test_a_folder_is_empty_then_begun_then_done(tmp_path: Path, order: Order) -> None:
    room = OutRoom(tmp_path / "deep" / "out")
    assert room.state(order) == "empty"
    with room.working(order):
        assert room.state(order) == "same"
        assert room.state(other(order)) == "other"
        make(room, "first")
        room.publish()
    assert room.state(order) == "done"
    assert sorted(path.name for path in room.out.iterdir()) == sorted(MADE)


def test_what_was_kept_for_one_order_is_thrown_away_for_another(tmp_path: Path, order: Order) -> None:
    room = OutRoom(tmp_path / "out")
    with room.working(order):
        (room.work / "plan.json").write_text("{}")
        make(room, "half")
    with room.working(order):
        assert (room.work / "plan.json").is_file()
    with room.working(other(order)):
        assert not (room.work / "plan.json").exists()
        assert not room.trained.exists()
        assert room.state(other(order)) == "same"


@pytest.mark.parametrize("moved", range(len(MADE) + 1))
def test_publishing_that_was_killed_anywhere_is_done_the_next_time(tmp_path: Path, order: Order, moved: int) -> None:
    room = OutRoom(tmp_path / "out")
    with room.working(order):
        make(room, "old")
        room.publish()
    with room.working(order):
        make(room, "new")
        for name in MADE[:moved]:
            if (room.out / name).is_dir():
                (room.out / name / "adapter_config.json").unlink()
                (room.out / name).rmdir()
            (room.trained / name).replace(room.out / name)
    with room.working(order):
        room.publish()
    assert read(room) == {"new"}
    assert room.state(order) == "done"


def test_files_that_no_training_made_are_not_touched(tmp_path: Path, order: Order) -> None:
    (tmp_path / "out" / "peft").mkdir(parents=True)
    with pytest.raises(StateError, match=r"peft is there already"):
        OutRoom(tmp_path / "out").state(order)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StateError, match="file is there already"):
        OutRoom(tmp_path / "file").state(order)


def test_two_do_not_train_into_one_folder(tmp_path: Path, order: Order) -> None:
    first, second = OutRoom(tmp_path / "out"), OutRoom(tmp_path / "out")
    refused = pytest.raises(AlreadyRunningError, match="another `bramble train`")
    with first.working(order), refused, second.working(order):
        pytest.fail("the folder is held")


def test_what_text_became_is_readable_by_its_owner_alone(tmp_path: Path, order: Order) -> None:
    room = OutRoom(tmp_path / "out")
    with room.working(order):
        assert [path.stat().st_mode & 0o077 for path in (room.out, room.work)] == [0, 0]
