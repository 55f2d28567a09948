"""`bramble train`, with real workers on a tiny base."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli.train import train
from agent.errors import AdapterError, DoesNotFitError, NoTextError, StateError
from agent.federation.alone.room import MADE
from agent.training.checkpoint import FILE_NAME

CUT_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Text, a base, and a directory without a device whose owner wants a checkpoint after every step."""

    root: Path
    base: Path

    @property
    def chats(self) -> Path:
        return self.root / "chats.jsonl"

    @property
    def given(self) -> tuple[object, ...]:
        small = ("--window", 64, "--batch", 4, "--rank", 4, "--lr", 0.005, "--threads", 1, "--compute", "float32")
        fixed = ("--micro-batch", 4, "--no-checkpointing", "--no-trunk-cache", "--steps", 40, "--patience", 99)
        return (self.chats, "--base", self.base, "--home", self.root / "home", *small, *fixed)

    def write_chats(self, word: str) -> None:
        lines = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}, {word}."} for n in range(100)]
        self.chats.write_text("\n".join(json.dumps(line) for line in lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_q8: Path) -> Place:
    root = tmp_path_factory.mktemp("place")
    (root / "home").mkdir()
    (root / "home" / "settings.toml").write_text("checkpoint_seconds = 0.001\n")
    made = Place(root, tiny_q8)
    made.write_chats("of course")
    return made


@dataclass(frozen=True)
class Whole:
    """A training that nothing interrupted."""

    shown: Result
    out: Path

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "training.json").read_text()))


@pytest.fixture(scope="module")
def whole(place: Place) -> Whole:
    out = place.root / "whole"
    return Whole(invoke(*place.given, "--out", out), out)


def invoke(*arguments: object, text: str | None = None) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(train, words, input=text, catch_exceptions=False)


def command(*arguments: object) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    words = [sys.executable, "-m", "agent.cli", "train", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cut(process: subprocess.Popen[str], out: Path, how: signal.Signals, *, after: bytes = b"") -> tuple[int, str]:
    """Send a signal once a checkpoint was written that is not ``after``; give exit status and standard error."""
    checkpoint = out / ".work" / "checkpoint" / FILE_NAME
    end = time.monotonic() + CUT_SECONDS
    while not checkpoint.is_file() or hashlib.sha256(checkpoint.read_bytes()).digest() == after:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate()
    return process.returncode, errors


def test_a_plan_that_does_not_fit_says_what_would_have_to_give_and_keeps_nothing(place: Place) -> None:
    out = place.root / "planned"
    process = command(*place.given, "--out", out, "--memory", "20MB", "--plan", "--json")
    shown, errors = process.communicate()
    plan = json.loads(shown)
    assert process.returncode == DoesNotFitError.exit_status
    assert (plan["fits"], plan["steps"], plan["window"], plan["compute"]) == (False, 40, 64, "float32")
    assert "may take 19 MiB" in errors
    assert plan["instead"]
    assert all(sentence in errors for sentence in plan["instead"])
    assert not out.exists()


@pytest.mark.slow
def test_an_adapter_is_planned_made_and_judged(whole: Whole) -> None:
    out, record, shown = whole.out, whole.record, whole.shown
    assert shown.exit_code == 0
    assert "it is read for this one training, on this machine" in shown.stderr
    assert "100 of them conversations" in shown.stderr
    for row in ("tokens", "steps", "batch", "sequence", "time", "memory", "disk", "compute", "checkpointing"):
        assert f"\n{row}" in shown.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(MADE)
    assert record["heldout"]["adapter"] < record["heldout"]["base"] - 0.5
    assert f"{record['heldout']['base']:.3f} -> {record['heldout']['adapter']:.3f}" in shown.stdout
    assert len(record["losses"]) == record["steps"] == record["plan"]["steps"] == 40
    assert [step for step, _ in record["heldout_curve"]] == list(range(0, 41, 5))
    assert (record["job"]["seed"], record["job"]["rank"], record["resumed_from"]) == (0, 4, 0)
    assert hashlib.sha256((out / "adapter.safetensors").read_bytes()).hexdigest() == record["adapter_sha256"]
    assert "planned" in shown.stdout
    assert f"--adapter mine={out / 'adapter.gguf'}" in shown.stdout
    assert "loss by step" in shown.stderr


@pytest.mark.slow
def test_killed_and_interrupted_the_same_command_goes_on_and_makes_the_same_adapter(place: Place, whole: Whole) -> None:
    out = place.root / "cut"
    given = (*place.given, "--out", out)
    status, _ = cut(command(*given), out, signal.SIGKILL)
    assert status == -signal.SIGKILL
    left = (out / ".work" / "checkpoint" / FILE_NAME).read_bytes()
    place.write_chats("perhaps")  # what was begun goes on with the text as it was
    status, errors = cut(command(*given), out, signal.SIGINT, after=hashlib.sha256(left).digest())
    assert status == 130, errors
    assert "paused at step" in errors
    assert "The same command goes on" in errors
    process = command(*given, "--json")
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Going on with what was begun" in errors
    record = json.loads(shown)
    assert 0 < record["resumed_from"] < 40
    assert record["losses"] == whole.record["losses"]
    assert record["adapter_sha256"] == whole.record["adapter_sha256"]


def test_what_is_finished_is_not_replaced_unasked(place: Place, whole: Whole) -> None:
    before = whole.record
    with pytest.raises(StateError, match="is kept as it is") as caught:
        invoke(*place.given, "--out", whole.out, text="n\n")
    assert "--yes" in caught.value.advice
    assert whole.record == before


def test_other_options_do_not_throw_away_what_was_begun(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = (tmp_path / "empty", *place.given[1:], "--out", tmp_path / "out")
    kept = tmp_path / "out" / ".work" / "order.json"
    with pytest.raises(NoTextError):
        invoke(*given)
    with pytest.raises(StateError, match="is kept as it is"):
        invoke(*given, "--seed", 1, text="n\n")
    assert json.loads(kept.read_text())["seed"] == 0
    with pytest.raises(NoTextError):
        invoke(*given, "--seed", 1, "--yes")
    assert json.loads(kept.read_text())["seed"] == 1


def test_what_cannot_be_trained_is_said_at_once(place: Place, tmp_path: Path) -> None:
    given = (*place.given, "--out", tmp_path / "out")
    with pytest.raises(AdapterError, match="no linear layers named wings"):
        invoke(*given, "--targets", "wings")
    bad = invoke(*given, "--memory", "lots")
    assert (bad.exit_code, "write 900MB, 1.5GB or 900MiB" in bad.stderr) == (2, True)
    both = invoke(*given, "--epochs", 2)
    assert (both.exit_code, "not both" in both.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
