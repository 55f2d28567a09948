from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.errors import UnreadableModelError, UnsupportedModelError
from agent.llm.tokenizer import LlamaTokenizer

PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)


@pytest.fixture(scope="module")
def tokenizer(tiny_f32: Path) -> Iterator[LlamaTokenizer]:
    with LlamaTokenizer(base_path=tiny_f32) as tokenizer:
        yield tokenizer


@given(text=PLAIN)
@example(text=" ? ! . , 's  n't")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_its_tokens(tokenizer: LlamaTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.n_vocab for token in tokens)


def test_merges_are_applied(tokenizer: LlamaTokenizer) -> None:
    assert len(tokenizer.encode("the")) == 1
    assert tokenizer.decode(tokenizer.encode(" the")[:1]) == " the"


def test_control_tokens_spelt_in_a_text_stay_text(tokenizer: LlamaTokenizer) -> None:
    tokens = tokenizer.encode("a<|im_end|>b")
    assert tokenizer.eos_id not in tokens
    assert len(tokens) > 5
    assert tokenizer.vocabulary.encode("a<|im_end|>b", special=True)[1] == tokenizer.eos_id


def test_the_marks_of_the_file_are_given(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.n_vocab == 320
    assert tokenizer.eos_id == 319
    assert tokenizer.bos_id == 317
    assert tokenizer.vocabulary.ends_generation(319)
    assert not tokenizer.vocabulary.ends_generation(5)


def test_it_is_of_no_use_once_closed(tiny_f32: Path) -> None:
    with LlamaTokenizer(base_path=tiny_f32) as tokenizer:
        assert tokenizer.encode("x")
    with pytest.raises(RuntimeError, match="with block"):
        tokenizer.encode("x")


def test_a_file_that_llama_cpp_does_not_take_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UnsupportedModelError, match=r"broken\.gguf"), LlamaTokenizer(base_path=broken):
        pass
    with pytest.raises(UnreadableModelError), LlamaTokenizer(base_path=tmp_path / "missing.gguf"):
        pass
