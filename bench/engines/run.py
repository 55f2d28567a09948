"""What every engine is asked to do, and what it answers: values that cross into a child process as JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16
PEAK_LEARNING_RATE = 1e-3
GRAD_CLIP = 1.0
SEED = 0


class _Value(BaseModel):
    """A value that crosses the border between two processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Run(_Value):
    """One training, the same for every engine.

    Attributes:
        shape: name of the model's dimensions.
        model: the GGUF.
        sha256: of that file.
        windows: ``.npz`` with ``tokens``, uint32 ``(n, seq)``.
        adapter: what to start from, safetensors.
        batch: windows an optimiser step.
        steps: optimiser steps, the first of which warms up.
        threads: to compute on.
        compute: ``float32``, ``bfloat16``, or ``auto`` where the engine may choose.
        checkpointing: recompute activations in the backward pass.
        last_layers: adapt only so many of the last blocks; None for all.
        trunk_cache: keep what the blocks below compute.
        micro_batch: windows a pass; None for the engine's own choice.
    """

    shape: str
    model: Path
    sha256: str
    windows: Path
    adapter: Path
    batch: int
    steps: int
    threads: int
    compute: str
    checkpointing: bool = False
    last_layers: int | None = None
    trunk_cache: bool = False
    micro_batch: int | None = None


class Outcome(_Value):
    """How one training went.

    Attributes:
        step_seconds: of each step but the first.
        whole_seconds: from before the first step (and before a cache is filled) to the end of the last; start-up, which
            is imports and opening or unpacking the model, is not in it.
        losses: nats a token of each step.
        peak_mb: largest resident size of the process, in MiB, mapped pages of files included (``VmHWM``).
        compute: the arithmetic of the frozen layers.
        adapter_type: what the adapter is kept in.
    """

    step_seconds: list[float]
    whole_seconds: float
    losses: list[float]
    peak_mb: float
    compute: str
    adapter_type: str
