from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.data import data
from agent.data.sources import survey
from agent.errors import NoTextError, NotInitialisedError
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from agent.service import add_source, create_device


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    lines = [
        {"question": f"How much is {n} and {n * n}?", "answer": f"{n + n * n}. Mail n{n}@example.org"}
        for n in range(60)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(data, ["preview", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_preview_shows_counts_what_was_removed_and_windows(tiny_q8: Path, chats: Path, tmp_path: Path) -> None:
    home = tmp_path / "none"
    shown = run(chats, "--base", tiny_q8, "--home", home, "--windows", 2, "--window", 256)
    assert "60 of them conversations" in shown
    assert "60 <EMAIL>" in shown
    assert "…" in shown.split("<EMAIL>")[1].splitlines()[0]
    assert "line 61 is not JSON" in shown
    assert shown.count("── window") + shown.count("window 1:") + shown.count("window 2:") >= 2
    assert "<|im_start|>assistant\n⟦" in shown
    assert "@example" not in shown
    assert not home.exists()


def test_a_preview_for_programs_has_the_same(tiny_q8: Path, chats: Path, tmp_path: Path) -> None:
    shown = json.loads(run(chats, "--base", tiny_q8, "--home", tmp_path / "none", "--windows", 1, "--json"))
    assert shown["base"] == str(tiny_q8)
    assert (shown["conversations"], shown["removed"], shown["window"]) == (60, {"EMAIL": 60}, 256)
    assert len(shown["samples"]) == 1
    assert "train_path" not in shown


def test_without_a_path_the_text_that_was_consented_to_is_shown(chats: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(NotInitialisedError):
        run("--home", home.root)
    create_device(home)
    with pytest.raises(NoTextError, match="no text was added"):
        run("--home", home.root)
    add_source(home, chats, survey([chats]))
    home.settings.write_text("filter_secrets = false\n")
    shown = json.loads(run("--home", home.root, "--windows", 0, "--json"))
    assert shown["base"] == str(SEEDLING_PATH)
    assert (shown["documents"], shown["removed"], shown["samples"]) == (60, {}, [])
    assert not list(home.work.rglob("*.npz"))
