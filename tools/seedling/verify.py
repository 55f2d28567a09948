"""Whether llama.cpp, transformers and the training code mean the same thing by the exported file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.seedling.sequences import Sequences
from tools.seedling.tokenizer import corpus

NASTY = (
    "", " ", "  ", "   a", "\n\n\n", "a\n \n b", "\t\tx", "\r\n\r\n", "trailing   ", " \n", "  \n  \t \n x",
    "I'm you're we'LL don't 'S 's", "1234567 12.5e-3 1st ½ ² \u2167 ٣", "_foo__bar_ __init__", "_" * 50 + "===",
    "a" * 300, "\u00a0\u00a0x  \u2028 \u2029 x\u3000y \u200b", "é e\u0301 \ufb01 …—\u201cq\u201d",
    "日本語 עברית العربية हिन्दी ไทย", "🙂👩\u200d👩\u200d👧 \U0010ffff\ud7ff\ue000", "\x00\x01\x7f",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>  a",
)  # fmt: skip
"""Texts on which tokenizers like to disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the three agree."""

    texts: int
    characters: int
    unlike_in_llama_cpp: int
    unlike_in_transformers: int
    loss_llama_cpp: float
    loss_transformers: float


def token_disagreements(model: Path, tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int, int, int]:
    """Texts and characters read, and in how many texts llama.cpp and transformers differ from ``tokenizer``."""
    llama = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    auto = AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)
    count = characters = in_llama = in_auto = 0
    for text in texts:
        ids = tokenizer.encode(text).ids
        count += 1
        characters += len(text)
        in_llama += llama.tokenize(text.encode(), add_bos=False, special=True) != ids
        in_auto += auto(text)["input_ids"] != ids
        if count % 5000 == 0:
            print(f"{count} texts, {in_llama} and {in_auto} differ", file=sys.stderr, flush=True)
    return count, characters, in_llama, in_auto


def llama_cpp_loss(model: Path, windows: Sequence[Sequence[int]]) -> float:
    """Mean loss of llama.cpp in nats per token; windows of one token more than is predicted."""
    llama = llama_cpp.Llama(str(model), n_ctx=len(windows[0]), logits_all=True, verbose=False, n_threads=1)
    losses = []
    for window in windows:
        llama.reset()
        llama.eval(list(window[:-1]))
        logits = torch.from_numpy(np.array(llama.scores[: len(window) - 1]))
        losses.append(float(functional.cross_entropy(logits, torch.tensor(window[1:]))))
    return sum(losses) / len(losses)


@torch.no_grad()
def transformers_loss(model: Path, windows: Sequence[Sequence[int]]) -> float:
    """Mean loss of the file as transformers loads it, in float32."""
    loaded = AutoModelForCausalLM.from_pretrained(str(model.parent), gguf_file=model.name, dtype=torch.float32)
    losses = []
    for window in windows:
        logits = loaded(torch.tensor([window[:-1]])).logits[0]
        losses.append(float(functional.cross_entropy(logits, torch.tensor(window[1:]))))
    return sum(losses) / len(losses)


def verify(model: Path, work: Path, *, texts: int | None = None, windows: int = 16, length: int = 512) -> Agreement:
    """Compare tokens on the corpus (or its first ``texts``) and loss on held-out text."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    def some() -> Iterable[str]:
        yield from NASTY
        for number, text in enumerate(corpus(work / "corpus.jsonl", "train", "chat", "held_out")):
            if texts is not None and number >= texts:
                return
            yield text

    count, characters, in_llama, in_auto = token_disagreements(model, tokenizer, some())
    held_out = Sequences(work / "held_out.u16", length=length, seed=0)
    chosen = [held_out.window(index).tolist() for index in range(windows)]
    return Agreement(
        texts=count,
        characters=characters,
        unlike_in_llama_cpp=in_llama,
        unlike_in_transformers=in_auto,
        loss_llama_cpp=llama_cpp_loss(model, chosen),
        loss_transformers=transformers_loss(model, chosen),
    )
