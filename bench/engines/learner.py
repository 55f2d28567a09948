"""Training and judging as a device does it, many times in one process, on one thread."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from agent.data.packing import WindowSet
from agent.llm.adapter import Adapter
from agent.llm.gguf_file import GgufModel
from agent.training.batches import pass_of
from agent.training.decoder import Decoder
from agent.training.job import TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import put_on
from agent.training.session import Session
from agent.update.delta import Factors

_AT_ONCE = 16
_NEVER = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What every device does in one round.

    Attributes:
        steps: optimiser steps.
        batch_size: windows a step.
        learning_rate: at its highest.
        warmup_steps: over which it rises, where there are no moments to go on with.
        schedule: of the learning rate after that.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    schedule: Literal["cosine", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What training gave.

    Attributes:
        adapter: trained.
        moments: of the optimiser, for a later training to go on with.
    """

    adapter: Adapter
    moments: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The training engine, without the process around it.

    Attributes:
        base: opened.
        base_sha256: of its file.
        compute: arithmetic of the frozen layers, the same in every run.
    """

    base: GgufModel
    base_sha256: str
    compute: Literal["float32", "bfloat16"]

    def train(
        self,
        start: Adapter,
        windows: WindowSet,
        recipe: Recipe,
        *,
        seed: int,
        factors: Factors,
        moments: bytes | None = None,
    ) -> Learnt:
        """Give what a device makes of an adapter.

        Args:
            start: where it begins.
            windows: its text.
            recipe: what it does.
            seed: of the order of the windows.
            factors: what it may change.
            moments: of its last training, to go on with.
        """
        with tempfile.TemporaryDirectory(prefix="bramble-quality-") as room:
            start_moments = Path(room) / "start_moments.safetensors"
            if moments is not None:
                start_moments.write_bytes(moments)
            job = TrainJob(
                base_path=self.base.path,
                base_sha256=self.base_sha256,
                windows_path=Path(room) / "windows.npz",
                rank=start.rank,
                alpha=start.alpha,
                target_modules=start.target_modules,
                factors=factors,
                steps=recipe.steps,
                batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                warmup_steps=recipe.warmup_steps,
                schedule=recipe.schedule,
                start_moments=None if moments is None else start_moments,
                keep_moments=True,
                seed=seed,
                threads=1,
                compute=self.compute,
                checkpoint_dir=Path(room),
                checkpoint_seconds=_NEVER,
                out_dir=Path(room),
            )
            session = Session(
                job=job,
                base=self.base,
                windows=windows,
                heldout=None,
                start=start,
                on_progress=lambda _: None,
                leaving=Leaving(),
            )
            session.run()
            return Learnt(adapter=session.lora.extract(), moments=session.write_moments().read_bytes())

    def loss(self, adapter: Adapter, windows: WindowSet) -> float:
        """Give the mean loss over windows, nats a token."""
        model = Decoder(
            self.base,
            compute=torch.bfloat16 if self.compute == "bfloat16" else torch.float32,
            threads=1,
            context=windows.length,
        )
        put_on(model, adapter)
        nats = 0.0
        with torch.no_grad():
            for first in range(0, len(windows), _AT_ONCE):
                nats += model.loss(pass_of(windows.take(slice(first, first + _AT_ONCE)))).item()
        return nats / windows.counted
