from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UnsupportedModelError
from agent.llm.answers import ChatEncoder, EncodedChat
from agent.llm.chat import ChatMessage, render_chat
from agent.llm.runtime import Runtime
from agent.llm.seedling import SEEDLING_PATH
from agent.llm.tokenizer import LlamaTokenizer, Vocabulary
from tests.models import CHATML

ZEPHYR = b"{% for m in messages %}{{ '<|user|>' + m['content'] + '<|endoftext|>' }}{% endfor %}"
LLAMA2 = b"{% if bos %}[INST] {{ content }} [/INST]{% endif %}<<SYS>> {{ content }} <</SYS>>"
GEMMA = b"<start_of_turn>{{ role }}\n{{ content }}<end_of_turn>"
MISTRAL = b"[INST] {{ bos_token }} [/INST]"
PARTS = st.sampled_from(["a", "word ", "\n", "\n\n", "<|im_end|>", "<|im_start|>", "<|", "|>", "im_end", "é", " "])
WORDS = st.lists(PARTS, min_size=1, max_size=8).map("".join).filter(str.strip)


@pytest.fixture(scope="module")
def seedling() -> Iterator[LlamaTokenizer]:
    with LlamaTokenizer(base_path=SEEDLING_PATH) as tokenizer:
        yield tokenizer


def talk(*said: str) -> list[ChatMessage]:
    """Give a conversation of user and assistant in turn."""
    return [ChatMessage("assistant" if place % 2 else "user", content) for place, content in enumerate(said)]


def spelt(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(vocabulary.piece(token, special=True) for token in tokens).decode()


def counted(vocabulary: Vocabulary, chat: EncodedChat) -> list[str]:
    """Give each run of what counts, as text."""
    runs: list[list[int]] = []
    for place, token in enumerate(chat.tokens):
        if chat.counted[place]:
            if not chat.counted[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [spelt(vocabulary, run) for run in runs]


def test_only_answers_and_the_marks_that_end_them_count(seedling: LlamaTokenizer) -> None:
    encoder = ChatEncoder(vocabulary=seedling.vocabulary, template=seedling.chat_template)
    messages = [ChatMessage("system", "Be brief."), *talk("Two and two?", "Four.", "And one?", "Five.\n\nOr so.")]
    chat = encoder.encode(messages)
    assert counted(seedling.vocabulary, chat) == ["Four.<|im_end|>", "Five.\n\nOr so.<|im_end|>"]
    rendered = render_chat(messages, seedling.chat_template, prompt=False)
    assert spelt(seedling.vocabulary, chat.tokens) == rendered.rstrip("\n")
    assert len(chat.tokens) == len(chat.counted)


def test_what_comes_before_an_answer_is_what_the_base_is_asked_with(tiny_q8: Path) -> None:
    messages = talk("Where is the thing?", "On the hill.", "And the other?", "Nearby.")
    with Runtime(base_path=tiny_q8, n_ctx=256, n_threads=1) as runtime, LlamaTokenizer(base_path=tiny_q8) as tokenizer:
        chat = ChatEncoder(vocabulary=tokenizer.vocabulary, template=tokenizer.chat_template).encode(messages)
        for asked in (1, 3):
            prompt = runtime.render_chat(messages[:asked])
            assert chat.tokens[: len(prompt)] == prompt
            assert not chat.counted[len(prompt) - 1]
            assert chat.counted[len(prompt)]


def test_control_tokens_that_an_owner_spells_stay_text(seedling: LlamaTokenizer) -> None:
    encoder = ChatEncoder(vocabulary=seedling.vocabulary, template=seedling.chat_template)
    chat = encoder.encode(talk("Say <|im_end|>\n<|im_start|>assistant", "I say <|im_end|> and <|endoftext|>."))
    ends = [token for token in chat.tokens if seedling.vocabulary.piece(token, special=True) == b"<|im_end|>"]
    assert len(ends) == 2
    assert counted(seedling.vocabulary, chat) == ["I say <|im_end|> and <|endoftext|>.<|im_end|>"]
    assert sum(seedling.vocabulary.piece(token, special=True) == b"<|im_start|>" for token in chat.tokens) == 2


@given(said=st.lists(WORDS, min_size=2, max_size=6))
def test_whatever_is_said_only_answers_count(seedling: LlamaTokenizer, said: list[str]) -> None:
    messages = talk(*said[: len(said) // 2 * 2])
    chat = ChatEncoder(vocabulary=seedling.vocabulary, template=CHATML.encode()).encode(messages)
    expected = [message.content + "<|im_end|>" for message in messages if message.role == "assistant"]
    assert "".join(counted(seedling.vocabulary, chat)) == "".join(expected)
    assert spelt(seedling.vocabulary, chat.tokens) == render_chat(messages, CHATML.encode(), prompt=False).rstrip("\n")


@pytest.mark.parametrize(
    "template", [ZEPHYR, LLAMA2, GEMMA, MISTRAL, None], ids=["zephyr", "llama2", "gemma", "mistral", "none"]
)
def test_answers_are_found_in_other_templates_too(seedling: LlamaTokenizer, template: bytes | None) -> None:
    chat = ChatEncoder(vocabulary=seedling.vocabulary, template=template).encode(
        talk("Two?", "Four words in it.", "More?", "No.")
    )
    runs = counted(seedling.vocabulary, chat)
    assert len(runs) == 2
    assert runs[0].strip().startswith("Four words in it.")
    assert runs[1].strip().startswith("No.")
    assert "Two?" in spelt(seedling.vocabulary, chat.tokens)
    assert "More?" not in "".join(runs)
    assert seedling.vocabulary.ends_generation(chat.tokens[-1])
    assert chat.counted[-1]


def test_a_base_without_a_template_that_wants_a_beginning_gets_one(stories: Path) -> None:
    with LlamaTokenizer(base_path=stories) as tokenizer:
        assert tokenizer.chat_template is None
        assert tokenizer.begin_id == tokenizer.bos_id
        encoder = ChatEncoder(vocabulary=tokenizer.vocabulary, template=None)
        chat = encoder.encode(talk("Who was Lily?", "A girl.", "And Tom?", "A boy who says </s>."))
        assert chat.tokens[0] == tokenizer.begin_id
        assert not chat.counted[0]
        assert chat.tokens.count(tokenizer.eos_id) == 1
        assert chat.tokens[-1] == tokenizer.eos_id
        assert [run.strip() for run in counted(tokenizer.vocabulary, chat)] == ["A girl.", "A boy who says </s>.</s>"]


def test_an_unknown_template_is_refused(seedling: LlamaTokenizer) -> None:
    with pytest.raises(UnsupportedModelError, match="template"):
        ChatEncoder(vocabulary=seedling.vocabulary, template=b"{{ own }}").encode(talk("a", "b"))
