from __future__ import annotations

import ast
import hashlib
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import jinja2
import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from agent.llm.seedling import SEEDLING_PATH, SEEDLING_SHA256

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 5_000_000
SUPER_BLOCK = 256  # of every k-quant
CONTROL = {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}
NASTY = (
    "", " ", "  ", "   a", "\n\n\n", "a\n \n b", "\t\tx", "\r\n\r\n", "trailing   ", " \n", "  \n  \t \n x",
    "I'm you're we'LL don't 'S 's", "1234567 12.5e-3 1st ½ ² \u2167 ٣", "_foo__bar_ __init__", "_" * 50 + "===",
    "a" * 300, "\u00a0\u00a0x  \u2028 \u2029 x\u3000y \u200b", "é e\u0301 \ufb01 …—\u201cq\u201d",
    "日本語 עברית العربية हिन्दी ไทย", "🙂👩\u200d👩\u200d👧 \U0010ffff\ud7ff\ue000", "\x00\x01\x7f",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>  a",
)  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(SEEDLING_PATH)


@pytest.fixture(scope="module")
def llama() -> Iterator[llama_cpp.Llama]:
    model = llama_cpp.Llama(str(SEEDLING_PATH), n_ctx=256, logits_all=True, verbose=False, n_threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def rebuilt(reader: GGUFReader) -> Tokenizer:
    """The tokenizer as the file's own vocabulary and merges define it."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL.values()))
    return tokenizer


def standard_library_docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield text


def own_text() -> Iterator[str]:
    for pattern in ("agent/**/*.py", "tools/**/*.py", "*.md", "docs/**/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.read_text("utf-8")


def test_the_file_is_small_enough_for_a_package_and_is_the_pinned_one() -> None:
    content = SEEDLING_PATH.read_bytes()
    assert len(content) <= MOST_BYTES
    assert hashlib.sha256(content).hexdigest() == SEEDLING_SHA256


def test_every_quantiser_fits_its_matrices(reader: GGUFReader) -> None:
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2]
    assert len(matrices) == 1 + 4 * 7
    for tensor in matrices:
        assert all(int(dimension) % SUPER_BLOCK == 0 for dimension in tensor.shape), tensor.name
        assert tensor.tensor_type == GGMLQuantizationType.Q8_0


def test_embeddings_are_tied_and_norms_are_exact(reader: GGUFReader) -> None:
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in tensors
    norms = [tensor for name, tensor in tensors.items() if name.endswith("norm.weight")]
    assert len(norms) == 1 + 4 * 2
    assert all(tensor.tensor_type == GGMLQuantizationType.F32 for tensor in norms)


def test_control_tokens_come_first_and_no_text_begins_with_one(reader: GGUFReader, llama: llama_cpp.Llama) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert {index: tokens[index] for index, kind in enumerate(kinds) if kind == 3} == CONTROL
    assert llama.tokenize(b"text", add_bos=True) == llama.tokenize(b"text", add_bos=False)


@pytest.mark.parametrize(
    "source", [lambda: NASTY, own_text, standard_library_docstrings], ids=["nasty", "own text", "docstrings"]
)
def test_llama_cpp_and_tokenizers_read_the_same_tokens(
    source: object, llama: llama_cpp.Llama, rebuilt: Tokenizer
) -> None:
    assert callable(source)
    for text in source():
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == rebuilt.encode(text).ids, text


def test_transformers_reads_the_same_tokens_out_of_the_file(rebuilt: Tokenizer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(SEEDLING_PATH.parent), gguf_file=SEEDLING_PATH.name)
    for text in (*NASTY, *standard_library_docstrings()):
        assert tokenizer(text)["input_ids"] == rebuilt.encode(text).ids, text


def test_tokens_turn_back_into_the_text(rebuilt: Tokenizer) -> None:
    for text in (*NASTY, *own_text()):
        assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text


def test_the_chat_template_frames_each_message(reader: GGUFReader) -> None:
    template = jinja2.Template(reader.fields["tokenizer.chat_template"].contents())
    messages = [{"role": "user", "content": "What is ls?"}, {"role": "assistant", "content": "A command."}]
    assert template.render(messages=messages, add_generation_prompt=False) == (
        "<|im_start|>user\nWhat is ls?<|im_end|>\n<|im_start|>assistant\nA command.<|im_end|>\n"
    )
    assert template.render(messages=messages[:1], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_docstrings_surprise_it_far_less_than_chance(llama: llama_cpp.Llama) -> None:
    text = "\n\n".join(docstring for docstring in standard_library_docstrings() if len(docstring) > 400)
    tokens = llama.tokenize(text.encode()[:4000], add_bos=False)[:257]
    llama.reset()
    llama.eval(tokens[:-1])
    logits = np.array(llama.scores[: len(tokens) - 1], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    loss = float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))
    assert loss < math.log(4096) - 2.5
