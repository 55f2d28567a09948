from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.data.documents import Document, Documents
from agent.data.windows import Windows, build_windows
from agent.errors import NoTextError

EOS = 7


class Letters:
    """A tokenizer of one token a character."""

    eos_id = EOS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def essay(seed: int, paragraphs: int = 60) -> str:
    rng = random.Random(seed)
    lines = (" ".join(f"w{rng.randrange(9000)}" for _ in range(rng.randrange(20, 60))) for _ in range(paragraphs))
    return "\n\n".join(lines)


def documents(*texts: str) -> Documents:
    return Documents(tuple(Document(path=Path(f"{number}.txt"), text=text) for number, text in enumerate(texts)))


def build(*texts: str, window: int = 64, fraction: float = 0.1, **options: int) -> Windows:
    return build_windows(documents(*texts), Letters(), window=window, holdout_fraction=fraction, **options)


def words(windows: np.ndarray) -> set[str]:
    """Give all words that are whole in the windows."""
    return {word for row in windows for word in "".join(map(chr, row)).split()[1:-1]}


def text_of(windows: np.ndarray) -> str:
    return "".join(map(chr, windows.reshape(-1)))


def test_windows_are_rows_of_tokens_and_about_the_fraction_is_held_out() -> None:
    built = build(*(essay(seed) for seed in range(8)))
    assert built.train.dtype == built.heldout.dtype == np.uint32
    assert built.train.shape[1] == built.heldout.shape[1] == 64
    share = built.counts.heldout_passages / built.counts.passages
    assert 0.04 < share < 0.18
    assert built.counts.documents == 8
    assert built.counts.tokens == built.train.size + built.heldout.size
    assert built.counts.repeats == 0


def test_nothing_held_out_is_trained_on() -> None:
    built = build(*(essay(seed) for seed in range(4)), fraction=0.3)
    train = text_of(built.train[np.argsort(built.train[:, 0])])
    rows = ["".join(map(chr, row)) for row in built.heldout]
    assert not [row for row in rows if row in train]


def passages_by_side(*texts: str) -> tuple[set[str], set[str]]:
    """Give the paragraphs that training and judging see whole."""
    built = build(*texts, window=8, fraction=0.2)
    order = np.arange(len(built.train))
    unshuffled = np.empty_like(built.train)
    unshuffled[np.random.default_rng(0).permutation(len(order))] = built.train
    sides = []
    for rows in (unshuffled, built.heldout):
        text = text_of(rows).replace(chr(EOS), "\n\n")
        sides.append(set(text.split("\n\n")[:-1]))
    return sides[0], sides[1]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), more=st.integers(1, 4))
def test_adding_documents_never_moves_text_between_training_and_judging(seed: int, more: int) -> None:
    texts = [essay(seed * 100 + number) for number in range(4)]
    train, heldout = passages_by_side(*texts)
    later_train, later_heldout = passages_by_side(*texts, *(essay(seed * 100 + 50 + n) for n in range(more)))
    assert not train & later_heldout
    assert not heldout & later_train


def test_the_order_of_documents_changes_neither_side() -> None:
    texts = [essay(seed) for seed in range(5)]
    first, second = build(*texts), build(*reversed(texts))
    assert first.counts == second.counts
    assert (
        sorted(text_of(first.heldout)) == sorted(text_of(second.heldout))
        or abs(first.heldout.size - second.heldout.size) < 2 * 64
    )


def test_copies_count_once_and_copies_of_held_out_text_are_not_trained_on() -> None:
    texts = [essay(seed) for seed in range(4)]
    once = build(*texts, fraction=0.3)
    twice = build(*texts, *(text.upper() for text in texts), fraction=0.3)
    assert twice.counts.repeats == once.counts.passages
    assert (once.train.shape, once.heldout.shape) == (twice.train.shape, twice.heldout.shape)
    revised = build(*texts, *(text.replace("w1 ", "new ") + " end" for text in texts), fraction=0.3)
    assert revised.counts.repeats > 0.9 * once.counts.passages
    assert len(words(revised.train) & words(revised.heldout)) < 0.5 * len(words(revised.heldout))


def test_the_seed_draws_the_order_and_the_choice() -> None:
    texts = [essay(seed) for seed in range(3)]
    first, again, other = (build(*texts, seed=seed, max_windows=20) for seed in (1, 1, 2))
    assert first.train.shape == (20, 64)
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)
    np.testing.assert_array_equal(first.heldout, other.heldout)


def test_held_out_windows_can_be_bounded() -> None:
    texts = [essay(seed) for seed in range(6)]
    assert build(*texts, max_heldout_windows=5).heldout.shape == (5, 64)
    assert len(build(*texts, max_heldout_windows=10_000).heldout) == len(build(*texts).heldout)


def test_documents_are_separated_by_end_tokens() -> None:
    built = build(*(essay(seed) for seed in range(3)))
    ends = np.count_nonzero(built.train == EOS) + np.count_nonzero(built.heldout == EOS)
    assert ends >= 3


@pytest.mark.parametrize("paragraphs", [12, 20, 30])
def test_a_little_text_still_gives_a_window_of_each_kind(paragraphs: int) -> None:
    for seed in range(10):
        built = build(essay(seed, paragraphs), window=256)
        assert len(built.train) >= 1
        assert len(built.heldout) >= 1


@pytest.mark.parametrize("text", ["too short", "All work and no play makes Jack a dull boy.\n\n" * 200])
def test_too_little_text_is_refused_with_how_much_is_needed(text: str) -> None:
    with pytest.raises(NoTextError, match="too little") as caught:
        build(text, window=256)
    assert "4,096 characters" in caught.value.advice


@pytest.mark.parametrize(("window", "fraction"), [(1, 0.1), (64, 0.0), (64, 0.6)])
def test_settings_out_of_range_are_refused(window: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        build(essay(1), window=window, fraction=fraction)
