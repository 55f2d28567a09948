from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import NoTextError, TrainingPausedError
from agent.training.job import PrepareJob, PrepareResult
from agent.training.leaving import Leaving
from agent.training.prepare import prepare
from agent.training.windows_file import read_windows


def essay(seed: int) -> str:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(f"w{rng.randrange(9000)}" for _ in range(40)) for _ in range(12))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"{essay(number)}\n\nWrite to someone{number}@example.org soon.")
    lines = [
        json.dumps({"question": f"What is {n} and {n}, {essay(n)[:40]}?", "answer": f"It is {2 * n}."})
        for n in range(40)
    ]
    (folder / "chat.jsonl").write_text("\n".join([*lines, "{broken"]))
    return folder


def run(base: Path, source: Path, out: Path, **changes: Any) -> PrepareResult:
    job = PrepareJob(base_path=base, sources=(source,), out_dir=out, window=128, **changes)
    return prepare(job, lambda _: None, Leaving())


def test_text_and_conversations_become_windows_and_are_counted(tiny_q8: Path, source: Path, tmp_path: Path) -> None:
    result = run(tiny_q8, source, tmp_path / "out", samples=3)
    train, heldout = (read_windows(path, n_vocab=320) for path in (result.train_path, result.heldout_path))
    assert (len(train), len(heldout)) == (result.train_windows, result.heldout_windows)
    assert (result.documents, result.conversations) == (46, 40)
    assert result.targets == train.counted + heldout.counted
    assert result.tokens + result.padding == train.tokens.size + heldout.tokens.size
    assert result.train_passages + result.heldout_passages + result.repeats == result.passages
    assert [reason for _, reason in result.skipped] == ["line 41 is not JSON"]
    assert result.skipped_count == 1
    assert len(result.samples) == 3
    for row, sample in enumerate(result.samples):
        spans = [span for segment in sample.segments for span in segment]
        assert any(span.counts for span in spans)
        assert sample.padding == train.padding[row]
        assert len(sample.segments) == len(train.bounds(row)) - bool(sample.padding)


def test_answers_are_shown_as_what_counts(tiny_q8: Path, source: Path, tmp_path: Path) -> None:
    result = run(tiny_q8, source / "chat.jsonl", tmp_path / "out", samples=100)
    segments = [segment for sample in result.samples for segment in sample.segments]
    assert len(segments) == result.train_passages
    for asked, said in segments:
        assert not asked.counts
        assert said.counts
        assert asked.text.startswith("<|im_start|>user\nWhat is ")
        assert asked.text.endswith("<|im_start|>assistant\n")
        assert said.text.startswith("It is ")
        assert said.text.endswith("<|im_end|>")


def test_the_filter_works_before_anything_is_tokenised_and_can_be_switched_off(
    tiny_q8: Path, source: Path, tmp_path: Path
) -> None:
    def text(result: PrepareResult) -> str:
        return "".join(span.text for sample in result.samples for segment in sample.segments for span in segment)

    filtered = run(tiny_q8, source, tmp_path / "a", samples=100)
    assert filtered.removed == {"EMAIL": 6}
    assert filtered.examples["EMAIL"][0] == "so…rg (20 characters)"
    assert "@example" not in text(filtered)
    assert "<EMAIL>" in text(filtered)
    plain = run(tiny_q8, source, tmp_path / "b", samples=100, filter_secrets=False)
    assert plain.removed == {}
    assert "@example" in text(plain)


def test_the_same_text_gives_the_same_windows(tiny_q8: Path, source: Path, tmp_path: Path) -> None:
    first, second = (run(tiny_q8, source, tmp_path / name, seed=3) for name in "ab")
    for name in ("train_path", "heldout_path"):
        one, other = (read_windows(getattr(result, name), n_vocab=320) for result in (first, second))
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.segments, other.segments)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_preparing_stops_when_asked_and_says_when_there_is_nothing(tiny_q8: Path, source: Path, tmp_path: Path) -> None:
    leaving = Leaving()
    leaving._asked.set()  # ask() would end this whole process later
    job = PrepareJob(base_path=tiny_q8, sources=(source,), out_dir=tmp_path / "out", window=128)
    with pytest.raises(TrainingPausedError):
        prepare(job, lambda _: None, leaving)
    assert not (tmp_path / "out").exists()
    (source / "chat.jsonl").write_text('{"title": "x"}')
    with pytest.raises(NoTextError, match="known are messages"):
        run(tiny_q8, source / "chat.jsonl", tmp_path / "out")
