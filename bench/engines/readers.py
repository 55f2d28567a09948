"""Ten readers of Shakespeare who train one small model: what the benches of quality and of attacks have in common.

Importing this holds the arithmetic to one thread: every run of such a bench has a process and a core of its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from agent.governance.charter import Charter
from agent.llm.adapter import Adapter
from agent.llm.gguf_file import linear_names, open_gguf, sha256_file, target_shapes
from agent.llm.seedling import SEEDLING_PATH
from agent.llm.tokenizer import LlamaTokenizer
from agent.training.compute import resolve_compute
from agent.update.delta import Factors
from agent.update.start import initial_adapter
from agent.update.wire import UpdateHeader
from engines.learner import Learner, Recipe
from engines.speakers import Owner, owners, pooled

TEXT = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"
DEVICES = 10
WINDOW = 64
HELDOUT = 24
RANK = 8
ALPHA = 2.0 * RANK
HASH = "0" * 64
CHARTER = Charter(name="quality", base_name="seedling", base_sha256=HASH, base_bytes=1).model_dump()
RECIPE = Recipe(steps=5, batch_size=4, learning_rate=1e-2, warmup_steps=2, schedule=CHARTER["training"]["schedule"])


@dataclass(frozen=True, slots=True)
class World:
    """What all runs share, once a process.

    Attributes:
        learner: trains and judges.
        devices: their texts.
        first: gives the adapter before the first round.
    """

    learner: Learner
    devices: tuple[Owner, ...]

    def first(self, seed: int) -> Adapter:
        """Give the adapter before the first round."""
        base = self.learner.base
        shapes = target_shapes(base, linear_names(base))
        return initial_adapter(shapes, rank=RANK, alpha=ALPHA, seed=seed, base_sha256=self.learner.base_sha256)

    def loss(self, adapter: Adapter) -> float:
        """Give the mean loss on what everybody held back."""
        return self.learner.loss(adapter, pooled([device.heldout for device in self.devices]))


@cache
def world() -> World:
    """Open the base and cut the text."""
    torch.set_num_threads(1)
    with LlamaTokenizer(base_path=SEEDLING_PATH) as tokenizer:
        devices = tuple(owners(TEXT, tokenizer.vocabulary, count=DEVICES, window=WINDOW, heldout=HELDOUT))
    compute = "bfloat16" if resolve_compute("auto") == torch.bfloat16 else "float32"
    learner = Learner(base=open_gguf(SEEDLING_PATH), base_sha256=sha256_file(SEEDLING_PATH), compute=compute)
    return World(learner=learner, devices=devices)


def order_seed(seed: int, round_number: int, device: int) -> int:
    """Give the seed of a device's windows in a round."""
    return int.from_bytes(hashlib.sha256(f"quality/{seed}/{round_number}/{device}".encode()).digest()[:4], "big")


def header_of(release: Adapter, *, number: int, seed: int, factors: Factors) -> UpdateHeader:
    """Give what a device says of its update.

    Args:
        release: what it started from.
        number: of the round.
        seed: of its windows.
        factors: that it trained.
    """
    return UpdateHeader(
        round=number,
        base_sha256=release.base_sha256,
        start_release=HASH,
        rank=release.rank,
        alpha=release.alpha,
        tokens=RECIPE.steps * RECIPE.batch_size * (WINDOW - 1),
        steps=RECIPE.steps,
        seed=seed,
        factors=factors,
    )
