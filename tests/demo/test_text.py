from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from agent.demo.text import TOPICS, device_topics, write_topic


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_real_text_on_this_machine(tmp_path: Path, topic: str) -> None:
    if topic == "windows-and-drawing" and not _has_tkinter():
        pytest.skip("this Python comes without tkinter's source")
    assert write_topic(tmp_path, topic) > 50_000
    assert all(file.read_text(encoding="utf-8").strip() for file in tmp_path.iterdir())


def _has_tkinter() -> bool:
    return (Path(sysconfig.get_paths()["stdlib"]) / "tkinter").is_dir()


def test_text_is_docstrings_and_comments_not_code(tmp_path: Path) -> None:
    write_topic(tmp_path, "data-and-numbers")
    text = (tmp_path / "bisect.txt").read_text()
    assert "Insert item x in list a, and keep it sorted" in text
    assert "return lo" not in text


def test_devices_of_one_topic_get_files_of_their_own(tmp_path: Path) -> None:
    write_topic(tmp_path / "a", "networking", part=0, parts=2)
    write_topic(tmp_path / "b", "networking", part=1, parts=2)
    names = [{file.name for file in (tmp_path / part).iterdir()} for part in "ab"]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("devices", [1, 3, 6, 13])
def test_every_device_has_a_share_that_no_other_has(devices: int) -> None:
    shares = device_topics(devices)
    assert len(set(shares)) == devices
    assert all(0 <= part < parts for _topic, part, parts in shares)
