from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.data.passages import PASSAGE_CHARACTERS, make_passage, normalise, split_passages


def essay(seed: int, paragraphs: int = 120) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(5000)}" for _ in range(rng.randrange(10, 90))) for _ in range(paragraphs)]


def test_passages_hold_the_whole_text_in_order() -> None:
    paragraphs = essay(1)
    passages = list(split_passages("\n\n".join(paragraphs)))
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    assert all(len(passage) <= 2 * PASSAGE_CHARACTERS + 200 for passage in passages)
    assert all(len(passage) >= PASSAGE_CHARACTERS // 2 for passage in passages[:-1])


def test_after_text_that_was_put_in_the_borders_fall_as_before() -> None:
    paragraphs = essay(2)
    before = list(split_passages("\n\n".join(paragraphs)))
    after = list(split_passages("\n\n".join([*paragraphs[:5], *essay(3, 4), *paragraphs[5:]])))
    assert len(set(before) - set(after)) <= 6


@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab .\n世\t"), max_size=300), repeat=st.integers(1, 60))
def test_any_text_is_cut_without_losing_a_word(text: str, repeat: int) -> None:
    whole = text * repeat
    passages = list(split_passages(whole))
    assert "".join("".join(passage.split()) for passage in passages) == "".join(whole.split())
    assert all(passage.strip() for passage in passages)
    assert all(len(passage) <= 2 * PASSAGE_CHARACTERS + 2 for passage in passages)


def test_case_blanks_and_forms_of_letters_do_not_change_a_digest() -> None:
    one, other = make_passage(0, "Ein ﬁx\n\nTEXT"), make_passage(5, "ein  fix text ")
    assert one.digest == other.digest
    assert one.position == other.position
    assert normalise(" A\tB ") == "a b"


def test_positions_are_spread_evenly() -> None:
    positions = [make_passage(0, f"passage {number}").position for number in range(2000)]
    assert all(0 <= position < 1 for position in positions)
    assert abs(sum(position < 0.1 for position in positions) / 2000 - 0.1) < 0.03


def test_the_position_of_a_text_is_pinned() -> None:
    assert f"{make_passage(0, 'To be, or not to be').position:.9f}" == "0.246734265"
