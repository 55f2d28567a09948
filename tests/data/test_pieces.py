from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.data.documents import Turn
from agent.data.pieces import conversation_pieces, text_pieces
from tests.data.test_windows import EOS, Letters, dialogue


def spelt(tokens: object) -> str:
    return "".join(map(chr, tokens))  # type: ignore[call-overload]


@given(text=st.text("abc ", min_size=1, max_size=100), window=st.integers(2, 30), begin=st.sampled_from([None, 1]))
def test_pieces_of_text_are_the_text(text: str, window: int, begin: int | None) -> None:
    letters = Letters()
    letters.begin_id = begin
    pieces = list(text_pieces(text, letters, window))
    marks = 0 if begin is None else 1
    whole = "".join(spelt(piece.tokens[marks:]) for piece in pieces)
    assert (text + chr(EOS)).startswith(whole)
    assert len(text) + 1 - len(whole) <= 1 - marks  # a single token predicts nothing
    for piece in pieces:
        assert 2 <= len(piece) <= window
        assert piece.targets.tolist() == [False] + [True] * (len(piece) - 1)


def test_a_conversation_that_fits_is_one_piece() -> None:
    turns = dialogue(1, exchanges=3, words=3)
    pieces, whole = conversation_pieces(turns, Letters(), 1000)
    assert whole
    assert [spelt(piece.tokens) for piece in pieces] == [spelt(Letters().encode_turns(turns)[0])]


@given(
    exchanges=st.integers(1, 12),
    words=st.integers(1, 30),
    window=st.integers(60, 400),
    system=st.sampled_from(["", "Be kind."]),
)
def test_a_longer_conversation_is_cut_between_exchanges_each_after_its_instructions(
    exchanges: int, words: int, window: int, system: str
) -> None:
    turns = dialogue(3, exchanges=exchanges, words=words, system=system)
    pieces, whole = conversation_pieces(turns, Letters(), window)
    answers = "".join(turn.content for turn in turns if turn.role == "assistant")
    counted = "".join(spelt(piece.tokens[piece.targets]) for piece in pieces).replace(chr(EOS), "")
    longest = max(len(Letters().encode_turns(turns[at : at + 2])[0]) for at in range(bool(system), len(turns), 2))
    if longest + (len(system) + 2 if system else 0) + 16 <= window:  # every exchange fits
        assert counted == answers
        assert all(spelt(piece.tokens).startswith(f"s{system}" if system else "u") for piece in pieces)
    for piece in pieces:
        assert 2 <= len(piece) <= window
        assert piece.targets.any()
        assert not piece.targets[0]
    assert whole == (len(pieces) == 1 and len(pieces[0]) == len(Letters().encode_turns(turns)[0]))


@pytest.mark.parametrize(("asked", "said"), [(1000, 10), (10, 1000), (1000, 1000)])
def test_an_exchange_longer_than_a_window_keeps_the_end_of_the_question_and_the_answers_beginning(
    asked: int, said: int
) -> None:
    turns = [Turn("user", "q" * asked + "?"), Turn("assistant", "!" + "a" * said)]
    (piece,), whole = conversation_pieces(turns, Letters(), 100)
    assert not whole
    assert len(piece) == 100
    text, answer = spelt(piece.tokens), spelt(piece.tokens[piece.targets])
    assert "?" in text
    assert answer.startswith("!a")
    assert len(answer) >= min(said, 50)


def test_instructions_that_fill_a_window_are_left_out() -> None:
    turns = dialogue(1, exchanges=4, words=4, system="x" * 500)
    pieces, whole = conversation_pieces(turns, Letters(), 100)
    assert not whole
    assert all("xxxx" not in spelt(piece.tokens) for piece in pieces)
