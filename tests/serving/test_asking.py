from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.llm.chat import ChatMessage
from agent.serving.asking import read_chat, read_completion
from agent.serving.refusals import RequestRefusedError

TURN = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> Any:
    return read_chat(json.dumps({"model": "base", "messages": [TURN], **fields}).encode())


def text(**fields: Any) -> Any:
    return read_completion(json.dumps({"model": "base", **fields}).encode())


def test_what_is_left_out_is_as_openai_documents_it() -> None:
    ask = chat()
    assert (ask.sampling.temperature, ask.sampling.top_p, ask.max_tokens, ask.stop) == (1.0, 1.0, None, ())
    assert not ask.stream
    assert chat().sampling.seed != chat().sampling.seed
    assert text(prompt="a").max_tokens == 16
    assert text().prompt == ""


def test_null_is_left_out_and_what_changes_no_answer_is_let_pass() -> None:
    ask = chat(temperature=None, tools=None, n=1, logprobs=False, user="me", store=True, top_k=-1, logit_bias={})
    assert ask.sampling.temperature == 1.0
    assert chat(response_format={"type": "text"}, tool_choice="none", presence_penalty=0.0).prompt


def test_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "me"}]
    assert chat(messages=turns).prompt == (ChatMessage("system", "be brief"), ChatMessage("user", "ab"))


@pytest.mark.parametrize(("prompt", "found"), [("a", "a"), (["a"], "a"), ([1, 2], (1, 2))])
def test_prompt_may_be_text_or_tokens(prompt: object, found: object) -> None:
    assert text(prompt=prompt).prompt == found


def test_the_lower_of_two_limits_counts() -> None:
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_completion_tokens=4).max_tokens == 4
    assert chat(max_tokens=5, max_completion_tokens=9).max_tokens == 5


def test_counts_of_a_stream_need_a_stream() -> None:
    options = {"include_usage": True}
    assert chat(stream=True, stream_options=options).include_usage
    assert not chat(stream_options=options).include_usage


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", 0),
        ("top_logprobs", 2),
        ("best_of", 3),
        ("echo", True),
        ("suffix", "end"),
        ("logit_bias", {"5": 1}),
        ("top_k", 40),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stream", "yes"),
        ("seed", "x"),
        ("prompt", ["a", "b"]),
        ("prompt", [1, "b"]),
        ("prompt", [-1]),
        ("model", ""),
        ("model", 3),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        text(**{"prompt": "a", field: value})
    assert refused.value.status == 400
    assert refused.value.parameter == field
    assert f"'{field}" in refused.value.message


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "tool", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": None}], "hello"],
)
def test_conversations_that_are_none_are_refused(messages: object) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        chat(messages=messages)
    assert refused.value.parameter == "messages"


def test_pictures_are_refused() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(RequestRefusedError, match="messages"):
        chat(messages=[{"role": "user", "content": [picture]}])


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(RequestRefusedError, match="temperature"):
        read_completion(b'{"model": "base", "prompt": "a", "temperature": NaN}')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from(["model", "messages", "prompt", "stop", "max_tokens", "temperature", "stream_options"])


@given(st.binary(max_size=60) | st.dictionaries(_FIELDS, _JSON).map(lambda fields: json.dumps(fields).encode()))
def test_nothing_but_a_refusal_comes_of_any_bytes(body: bytes) -> None:
    for read in (read_chat, read_completion):
        try:
            read(body)
        except RequestRefusedError as refused:
            json.dumps(refused.as_json())
