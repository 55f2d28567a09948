from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.data.documents import Document, Documents, Turn
from agent.data.packing import WindowSet
from agent.data.windows import Windows, build_windows
from agent.errors import NoTextError

EOS = 7


class Letters:
    """A tokenizer of one token a character, and a template that says who speaks."""

    eos_id = EOS
    begin_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_turns(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        tokens: list[int] = []
        counted: list[bool] = []
        for turn in turns:
            tokens += [ord(turn.role[0]), *self.encode(turn.content), EOS]
            counted += [False, *[turn.role == "assistant"] * (len(turn.content) + 1)]
        return tokens, counted


def essay(seed: int, paragraphs: int = 60) -> str:
    rng = random.Random(seed)
    lines = (" ".join(f"w{rng.randrange(9000)}" for _ in range(rng.randrange(20, 60))) for _ in range(paragraphs))
    return "\n\n".join(lines)


def documents(*texts: str) -> Documents:
    return Documents(tuple(Document(path=Path(f"{number}.txt"), text=text) for number, text in enumerate(texts)))


def build(*texts: str, window: int = 64, fraction: float = 0.1, **options: int) -> Windows:
    return build_windows(documents(*texts), Letters(), window=window, holdout_fraction=fraction, **options)


def words(windows: WindowSet) -> set[str]:
    """Give all words that are whole in the windows."""
    return {word for text in segments_of(windows) for word in text.split()[1:-1]}


def segments_of(windows: WindowSet) -> list[str]:
    """Give the text of each segment that is no padding."""
    return [
        "".join(map(chr, windows.tokens[row, start:end]))
        for row in range(len(windows))
        for start, end in windows.bounds(row)
        if start < windows.length - windows.padding[row]
    ]


def dialogue(seed: int, exchanges: int = 1, words: int = 12, system: str = "") -> tuple[Turn, ...]:
    rng = random.Random(seed)
    said = lambda: " ".join(f"w{rng.randrange(9000)}" for _ in range(words))  # noqa: E731
    pairs = [turn for _ in range(exchanges) for turn in (Turn("user", said()), Turn("assistant", said()))]
    return (*([Turn("system", system)] if system else []), *pairs)


def conversations(*dialogues: tuple[Turn, ...]) -> Documents:
    return Documents(tuple(Document.conversation(Path("a.jsonl"), turns) for turns in dialogues))


def test_windows_are_rows_of_tokens_and_about_the_fraction_is_held_out() -> None:
    built = build(*(essay(seed) for seed in range(8)))
    assert built.train.length == built.heldout.length == 64
    share = built.counts.heldout_passages / built.counts.passages
    assert 0.04 < share < 0.18
    assert built.counts.documents == 8
    assert built.counts.tokens + built.counts.padding == built.train.tokens.size + built.heldout.tokens.size
    assert built.counts.tokens == sum(map(len, segments_of(built.train) + segments_of(built.heldout)))
    assert built.counts.padding < 0.2 * built.counts.tokens
    assert built.counts.targets == built.train.counted + built.heldout.counted
    assert built.counts.repeats == 0


def test_nothing_held_out_is_trained_on() -> None:
    built = build(*(essay(seed) for seed in range(4)), fraction=0.3)
    train = "\0".join(segments_of(built.train))
    assert not [text for text in segments_of(built.heldout) if len(text) > 20 and text in train]


def passages_by_side(*texts: str) -> tuple[set[str], set[str]]:
    """Give the paragraphs that training and judging see whole."""
    known: list[str] = ["end"]

    class Paragraphs(Letters):
        eos_id = 0

        def encode(self, text: str) -> list[int]:
            known.extend(text.split("\n\n"))
            return list(range(len(known) - len(text.split("\n\n")), len(known)))

    built = build_windows(documents(*texts), Paragraphs(), window=2, holdout_fraction=0.2)
    sides = [{known[token] for token in windows.tokens.flat if token} for windows in (built.train, built.heldout)]
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
    assert sorted(segments_of(first.heldout)) == sorted(segments_of(second.heldout))
    assert sorted(segments_of(first.train)) == sorted(segments_of(second.train))


def test_copies_count_once_and_copies_of_held_out_text_are_not_trained_on() -> None:
    texts = [essay(seed) for seed in range(4)]
    once = build(*texts, fraction=0.3)
    twice = build(*texts, *(text.upper() for text in texts), fraction=0.3)
    assert twice.counts.repeats == once.counts.passages
    assert (len(once.train), len(once.heldout)) == (len(twice.train), len(twice.heldout))
    revised = build(*texts, *(text.replace("w1 ", "new ") + " end" for text in texts), fraction=0.3)
    assert revised.counts.repeats > 0.9 * once.counts.passages
    assert len(words(revised.train) & words(revised.heldout)) < 0.5 * len(words(revised.heldout))


def test_the_seed_draws_the_order_and_the_choice() -> None:
    texts = [essay(seed) for seed in range(3)]
    first, again, other = (build(*texts, seed=seed, max_windows=20) for seed in (1, 1, 2))
    assert len(first.train) == 20
    for name in ("tokens", "targets", "segments"):
        np.testing.assert_array_equal(getattr(first.train, name), getattr(again.train, name))
        np.testing.assert_array_equal(getattr(first.heldout, name), getattr(other.heldout, name))
    assert not np.array_equal(first.train.tokens, other.train.tokens)


def test_held_out_windows_can_be_bounded() -> None:
    texts = [essay(seed) for seed in range(6)]
    assert len(build(*texts, max_heldout_windows=5).heldout) == 5
    assert len(build(*texts, max_heldout_windows=10_000).heldout) == len(build(*texts).heldout)


def test_documents_are_separated_by_end_tokens() -> None:
    built = build(*(essay(seed) for seed in range(3)))
    texts = segments_of(built.train) + segments_of(built.heldout)
    assert sum(text.endswith(chr(EOS)) for text in texts) >= 3
    assert not any(chr(EOS) in text[:-1] for text in texts)


def test_every_token_of_text_counts_but_the_first_of_a_segment() -> None:
    built = build(*(essay(seed) for seed in range(3)))
    for windows in (built.train, built.heldout):
        for row in range(len(windows)):
            for start, end in windows.bounds(row):
                padded = start >= 64 - windows.padding[row]
                assert windows.targets[row, start:end].tolist() == [False, *[not padded] * (end - start - 1)]


def test_every_segment_begins_with_the_mark_that_the_base_wants() -> None:
    class Begun(Letters):
        begin_id = 3

    built = build_windows(documents(essay(1), essay(2)), Begun(), window=64, holdout_fraction=0.1)
    texts = segments_of(built.train) + segments_of(built.heldout)
    assert all(text[0] == chr(3) and chr(3) not in text[1:] for text in texts)


def test_only_answers_count_and_each_conversation_is_a_segment_of_its_own() -> None:
    told = [dialogue(seed) for seed in range(60)]
    built = build_windows(conversations(*told), Letters(), window=512, holdout_fraction=0.2)
    assert (built.counts.conversations, built.counts.passages, built.counts.cut) == (60, 60, 0)
    whole = {"".join(map(chr, Letters().encode_turns(turns)[0])): turns for turns in told}
    assert sorted(segments_of(built.train) + segments_of(built.heldout)) == sorted(whole)
    for windows in (built.train, built.heldout):
        for row in range(len(windows)):
            for start, end in windows.bounds(row)[: -1 if windows.padding[row] else None]:
                answer = windows.tokens[row, start:end][windows.targets[row, start:end]]
                turns = whole["".join(map(chr, windows.tokens[row, start:end]))]
                assert "".join(map(chr, answer)) == turns[1].content + chr(EOS)


def test_text_and_conversations_share_windows() -> None:
    mixed = Documents(
        (*documents(*(essay(n, 3) for n in range(40))).documents, *conversations(*map(dialogue, range(40))).documents)
    )
    built = build_windows(mixed, Letters(), window=2048, holdout_fraction=0.1)
    assert built.counts.conversations == 40
    assert built.counts.documents == 80
    assert any(
        {"u", "w"} <= {chr(row[start]) for start, _ in built.train.bounds(n)}
        for n, row in enumerate(built.train.tokens)
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), more=st.integers(1, 30))
def test_adding_conversations_never_moves_one_between_training_and_judging(seed: int, more: int) -> None:
    def sides(count: int) -> tuple[set[str], set[str]]:
        told = conversations(*(dialogue(seed * 1000 + n) for n in range(count)))
        built = build_windows(told, Letters(), window=256, holdout_fraction=0.2)
        return set(segments_of(built.train)), set(segments_of(built.heldout))

    train, heldout = sides(40)
    later_train, later_heldout = sides(40 + more)
    assert not train & later_heldout
    assert not heldout & later_train


def test_conversations_that_repeat_count_once_though_instructions_may_be_the_same() -> None:
    system = "You are a patient helper who answers every question in the words of a lighthouse keeper. " * 10
    told = [dialogue(seed, exchanges=2, system=system) for seed in range(40)]
    once = build_windows(conversations(*told), Letters(), window=2048, holdout_fraction=0.2)
    assert once.counts.repeats == 0
    shouted = [tuple(Turn(turn.role, f" {turn.content.upper()}") for turn in turns) for turns in told]
    twice = build_windows(conversations(*told, *shouted), Letters(), window=2048, holdout_fraction=0.2)
    assert twice.counts.repeats == 40


def test_conversations_longer_than_a_window_are_counted() -> None:
    built = build_windows(
        conversations(*(dialogue(seed, exchanges=1 + 9 * (seed % 2)) for seed in range(30))),
        Letters(),
        window=512,
        holdout_fraction=0.2,
    )
    assert built.counts.cut == 15


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
