"""Which settings engines are compared in, and how long each is let run."""

from __future__ import annotations

from dataclasses import dataclass

from engines.run import Outcome
from engines.shapes import SHAPES, Shape

EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to train.

    Attributes:
        name: as rows call it.
        compute: arithmetic of the frozen layers; ``auto`` where the engine chooses.
        checkpointing: recompute activations in the backward pass.
    """

    name: str
    compute: str
    checkpointing: bool = False

    @property
    def label(self) -> str:
        """Its name, and what sets it apart."""
        return self.name + ("+checkpointing" if self.checkpointing else "")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting that engines are compared in.

    Attributes:
        name: as rows and ``--only`` call it.
        shape: name of the model's shape.
        quant: block type of its file.
        batch: windows an optimiser step.
        seq: tokens a window.
        timed: steps after the one that warms up.
        engines: in the order of the first round.
        rounds: how often each engine runs; None for as often as the command line says.
        epochs: passes over the same windows; whole runs are timed where there are several.
        last_layers: how many of the last blocks are adapted; None for all.
        quick: also part of ``--quick``.
    """

    name: str
    shape: str = "smollm2-135m"
    quant: str = "Q8_0"
    batch: int = 4
    seq: int = 512
    timed: int
    engines: tuple[Engine, ...]
    rounds: int | None = None
    epochs: int = 1
    last_layers: int | None = None
    quick: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps of a run."""
        return 1 + self.timed

    @property
    def dimensions(self) -> Shape:
        """The model's."""
        return SHAPES[self.shape]


PEFT_FP32 = Engine(name="peft-fp32", compute="float32")
PEFT_BF16 = Engine(name="peft-bf16", compute="bfloat16")
BRAMBLE = Engine(name="bramble", compute="auto")
BRAMBLE_FP32 = Engine(name="bramble-fp32", compute="float32")
BRAMBLE_CHECKPOINTING = Engine(name="bramble", compute="auto", checkpointing=True)
BRAMBLE_TRUNK_CACHE = Engine(name="bramble-trunk-cache", compute="auto")

CASES = (
    Case(
        name="q8_0-4x512",
        timed=2,
        engines=(PEFT_FP32, BRAMBLE, PEFT_BF16, BRAMBLE_FP32, BRAMBLE_CHECKPOINTING),
        quick=True,
    ),
    Case(name="q8_0-2x256", batch=2, seq=256, timed=4, engines=(PEFT_FP32, BRAMBLE, PEFT_BF16), quick=True),
    Case(
        name="q4_0-4x512",
        quant="Q4_0",
        timed=3,
        engines=(PEFT_FP32, BRAMBLE, PEFT_BF16, BRAMBLE_CHECKPOINTING),
        rounds=1,
    ),
    Case(
        name="q8_0-half",
        timed=2 * EPOCHS - 1,  # eight windows, thrice
        engines=(PEFT_FP32, BRAMBLE_TRUNK_CACHE),
        epochs=EPOCHS,
        last_layers=15,
    ),
    Case(
        name="1b-1x512",
        shape="llama-3.2-1b",
        quant="Q4_K_M",
        batch=1,
        timed=1,
        engines=(BRAMBLE_CHECKPOINTING, BRAMBLE),
        rounds=1,
    ),
    Case(name="q8_0-curve", batch=2, seq=64, timed=49, engines=(PEFT_FP32, BRAMBLE), rounds=1),
    Case(  # only where --only names it: to try the bench itself
        name="try",
        shape="tiny",
        batch=2,
        seq=64,
        timed=2,
        engines=(PEFT_FP32, BRAMBLE, PEFT_BF16, BRAMBLE_FP32, BRAMBLE_CHECKPOINTING),
    ),
    Case(
        name="try-half",
        shape="tiny",
        batch=2,
        seq=64,
        timed=2 * EPOCHS - 1,
        engines=(PEFT_FP32, BRAMBLE_TRUNK_CACHE),
        epochs=EPOCHS,
        last_layers=2,
    ),
)


def seconds_a_step(case: Case, outcome: Outcome) -> list[float]:
    """Give the timed seconds a step: of each one, or the mean over a whole run where that is what counts."""
    return [outcome.whole_seconds / case.steps] if case.epochs > 1 else outcome.step_seconds
