from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.conversation import Conversation
from agent.llm.gguf_file import open_gguf
from agent.llm.seedling import SEEDLING_PATH
from tests.models import random_adapter

LONG = "The device keeps the text that its owner wrote. " * 12


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Conversation]:
    base = open_gguf(SEEDLING_PATH)
    path = tmp_path / "a.gguf"
    write_gguf_adapter(random_adapter(base, rank=4, alpha=8.0, names=["q_proj", "down_proj"], size=0.1), base, path)
    adapters: dict[str, list[Path]] = {"base": [], "mine": [path]}
    with Conversation(base=SEEDLING_PATH, adapters=adapters, max_tokens=24, temperature=0, threads=1) as talk:
        yield talk


def said(talk: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in talk._messages]


def test_models_are_swapped_within_a_conversation(talk: Conversation) -> None:
    answers = []
    for name in ("base", "mine", "base"):
        talk.swap(name)
        talk.forget()
        answers.append("".join(talk.answer("What is a program?")))
    assert answers[0] == answers[2] != answers[1]


def test_what_was_said_is_remembered_and_not_read_again(talk: Conversation) -> None:
    first = "".join(talk.answer(LONG))
    assert talk.stats is not None
    assert (talk.stats.reused_tokens, talk.stats.tokens > 0) == (0, True)
    second = "".join(talk.answer("And then?"))
    assert talk.stats.reused_tokens >= 128
    assert 0 < talk.stats.first_seconds <= talk.stats.seconds
    turns = [("user", LONG), ("assistant", first), ("user", "And then?"), ("assistant", second)]
    assert said(talk) == turns
    talk.forget()
    assert "".join(talk.answer(LONG)) == first


def test_answer_that_is_left_off_is_remembered_as_far_as_it_went(talk: Conversation) -> None:
    pieces = talk.answer("What is a program?")
    heard = next(pieces)
    pieces.close()
    assert said(talk) == [("user", "What is a program?"), ("assistant", heard)]
    assert talk.stats is not None
    assert talk.stats.tokens < 24


def test_question_without_an_answer_is_forgotten(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talk._runtime, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.answer("What is a program?"))
    monkeypatch.undo()
    assert said(talk) == []
    assert list(talk.answer("What is a program?"))


def test_oldest_turns_go_when_the_context_is_full(talk: Conversation) -> None:
    for number in range(5):
        assert list(talk.answer(f"{number} {LONG}"))
    kept = said(talk)
    assert kept[-2] == ("user", f"4 {LONG}")
    assert ("user", f"0 {LONG}") not in kept


def test_context_batch_and_layers_on_a_graphics_processor_are_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    load = llama_cpp.llama_model_load_from_file

    def noted(path: bytes, params: Any) -> Any:
        asked.append(params.n_gpu_layers)
        return load(path, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", noted)
    limits = {"context": 200, "batch": 32, "gpu_layers": 7}
    with Conversation(base=SEEDLING_PATH, adapters={"base": []}, max_tokens=4, threads=1, **limits) as talk:
        assert list(talk.answer(LONG)) or talk.stats
        assert (talk._runtime.n_ctx, talk._runtime._n_batch) == (200, 32)
    with Conversation(base=SEEDLING_PATH, adapters={"base": []}, threads=1, context=1 << 20) as talk:
        assert talk._runtime.n_ctx == 512  # what the base was trained to read
    assert asked == [7, 0]
