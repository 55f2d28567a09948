from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UnsupportedModelError
from agent.llm.chat import ChatMessage, StopFilter, render_chat
from tests.models import CHATML

TEXT = st.text("abc", max_size=40)


@given(pieces=st.lists(st.text("abc", max_size=4)), stops=st.lists(st.text("abc", max_size=4), max_size=3))
def test_text_is_passed_on_up_to_the_first_stop_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    held = StopFilter(stops)
    given_on = ""
    for piece in pieces:
        given_on += held.feed(piece)
        if held.stopped:
            break
    given_on += held.finish()
    whole = "".join(pieces)
    ends = [at for at in (whole.find(stop) for stop in stops if stop) if at >= 0]
    if not ends:
        assert given_on == whole
        return
    assert whole.startswith(given_on)
    assert not any(stop in given_on for stop in stops if stop)
    assert any(whole[len(given_on) :].startswith(stop) for stop in stops if stop)


def test_a_conversation_follows_the_template_of_the_base() -> None:
    messages = [ChatMessage("system", "Be brief."), ChatMessage("user", "Héllo?")]
    assert render_chat(messages, CHATML.encode()) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHéllo?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_base_without_a_template_goes_on_from_the_text() -> None:
    assert render_chat([ChatMessage("user", "Once upon")], None) == "Once upon\n\n"


def test_an_unknown_template_is_refused_with_advice() -> None:
    with pytest.raises(UnsupportedModelError, match="template") as caught:
        render_chat([ChatMessage("user", "hi")], b"{{ something_of_its_own }}")
    assert "ChatML" in caught.value.advice


def test_a_long_conversation_does_not_overflow() -> None:
    text = "ä" * 50_000
    assert text in render_chat([ChatMessage("user", text)], CHATML.encode())
