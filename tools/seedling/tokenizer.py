"""The seedling's vocabulary: byte-level BPE over GPT-2's regular expression, which llama.cpp calls ``gpt-2``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.seedling.chatml import END_OF_TEXT, IM_END, IM_START

VOCABULARY = 4096
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
"""Control tokens, in the order of their ids from 0."""


def corpus(path: Path, *splits: str) -> Iterator[str]:
    """The texts of the named splits of ``corpus.jsonl``."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["split"] in splits:
                yield record["text"]


def learn(texts: Iterable[str]) -> Tokenizer:
    """Learn a vocabulary of 4096: 3 control tokens, 256 bytes, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, texts: Iterable[str], path: Path, *, batch: int = 512) -> int:
    """Write texts as uint16 tokens, an end of text after each; returns how many tokens."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    count = 0
    with path.open("wb") as out:
        for group in _batches(texts, batch):
            for encoding in tokenizer.encode_batch_fast(group):
                tokens = np.array([*encoding.ids, end], dtype="<u2")
                out.write(tokens.tobytes())
                count += len(tokens)
    return count


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
