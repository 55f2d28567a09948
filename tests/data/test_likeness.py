from __future__ import annotations

import random
import time

import pytest

from agent.data.likeness import group_alike


def words(seed: int, count: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(3000)}" for _ in range(count)]


def test_texts_that_differ_stay_apart_and_copies_come_together() -> None:
    texts = [" ".join(words(seed)) for seed in (1, 2, 1, 3, 2)]
    assert group_alike(texts) == [0, 1, 0, 3, 1]


def test_a_few_changed_words_make_no_other_text() -> None:
    for seed in range(20):
        original = words(seed)
        changed = [*original[:50], "new", "words", *original[52:150], "here", *original[151:]]
        other = words(seed + 1000)
        assert group_alike([" ".join(original), " ".join(other), " ".join(changed)]) == [0, 1, 0]


def test_half_changed_is_another_text() -> None:
    for seed in range(20):
        first = words(seed)
        assert group_alike([" ".join(first), " ".join(first[:100] + words(seed + 500, 100))]) == [0, 1]


def test_scripts_without_blanks_between_words_are_compared_by_letters() -> None:
    rng = random.Random(5)
    letters = [chr(0x4E00 + rng.randrange(3000)) for _ in range(400)]
    one, near, far = "".join(letters), "".join([*letters[:200], "新", *letters[201:]]), "".join(reversed(letters))
    assert group_alike([one, far, near]) == [0, 1, 0]


@pytest.mark.parametrize("texts", [[], [""], ["", "a"], ["one two", "one two three"]])
def test_short_texts_are_no_trouble(texts: list[str]) -> None:
    assert len(group_alike(texts)) == len(texts)


def test_boilerplate_in_thousands_takes_seconds_not_minutes() -> None:
    texts = [" ".join([*words(1, 120), *words(seed + 2, 60)]) for seed in range(1500)]
    began = time.process_time()  # whoever else uses the machine
    group_alike(texts)
    assert time.process_time() - began < 20
