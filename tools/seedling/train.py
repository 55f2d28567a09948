"""Pre-trains the seedling on the CPU: packed sequences, bfloat16 autocast, Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from tools.seedling.model import Seedling, Shape
from tools.seedling.schedule import rate
from tools.seedling.sequences import Sequences
from tools.seedling.workers import GradientWorkers


class RowWriter(Protocol):
    """What ``csv.writer`` gives."""

    def writerow(self, row: tuple[object, ...], /) -> object:
        """Write one row."""


CSV_FIELDS = ("seconds", "step", "tokens", "learning_rate", "train_loss", "held_out_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the log."""

    seconds: int
    step: int
    tokens: int
    learning_rate: float
    train_loss: float
    held_out_loss: float

    def __str__(self) -> str:
        return (
            f"{self.seconds / 60:5.1f} min  step {self.step:5}  {self.tokens / 1e6:6.2f} M tokens  "
            f"train {self.train_loss:.3f}  held out {self.held_out_loss:.3f}"
        )

    def write(self, rows: RowWriter, log: TextIO) -> None:
        """Append to the CSV file."""
        losses = f"{self.train_loss:.4f}", f"{self.held_out_loss:.4f}"
        rows.writerow((self.seconds, self.step, self.tokens, f"{self.learning_rate:.2e}", *losses))
        log.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to train."""

    minutes: float
    """Time budget, counted over all runs; the learning rate reaches zero at its end."""
    micro_batch: int = 2
    """Sequences that a worker takes at a time."""
    batches: int = 4
    """Micro-batches in a step."""
    peak_rate: float = 4e-3
    weight_decay: float = 0.1
    workers: int = 2
    evaluate_every: float = 60.0
    """Seconds between measurements on held-out text, each of which also writes a checkpoint."""
    evaluate_on: int = 16
    """Sequences per measurement."""
    evaluate_at_end: int = 256
    """Sequences of the last measurement."""
    seed: int = 20


def optimisers(model: Seedling, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon (arXiv:2502.16982, scaled to AdamW's step size) for hidden matrices, AdamW for embeddings and norms."""
    hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            hidden, lr=plan.peak_rate, weight_decay=plan.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=plan.peak_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def held_out_loss(model: Seedling, sequences: Sequences, most: int | None = None) -> float:
    """Mean loss in nats per token over the first ``most`` windows, or all of them."""
    windows = min(most or sequences.count, sequences.count)
    total = 0.0
    for index in range(windows):
        window = sequences.window(index)[None]
        with torch.autocast("cpu", torch.bfloat16):
            total += float(model.loss(window[:, :-1], window[:, 1:]))
    return total / windows


@dataclass(slots=True)
class Progress:
    """Where training stands; saved in every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    windows: int = 0


def save(path: Path, model: Seedling, opts: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write a checkpoint under a temporary name, then move it into place."""
    state = {
        "model": model.state_dict(),
        "optimisers": [opt.state_dict() for opt in opts],
        "progress": {"step": progress.step, "seconds": progress.seconds, "windows": progress.windows},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def resume(path: Path, model: Seedling, opts: list[torch.optim.Optimizer]) -> Progress:
    """Load a checkpoint, if there is one."""
    if not path.exists():
        return Progress()
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimisers"], strict=True):
        opt.load_state_dict(saved)
    return Progress(**state["progress"])


def train(work: Path, plan: Plan, name: str = "seedling") -> None:
    """Train until the budget is spent.

    Reads ``train.u16`` and ``held_out.u16``, writes ``NAME.pt`` (the checkpoint that it resumes from) and ``NAME.csv``.
    """
    torch.set_num_threads(1)  # the optimiser works while no worker does; two threads would only wait for each other
    torch.manual_seed(plan.seed)
    model = Seedling(Shape())
    opts = optimisers(model, plan)
    checkpoint = work / f"{name}.pt"
    progress = resume(checkpoint, model, opts)
    tokens = work / "train.u16"
    workers = GradientWorkers(model, tokens, workers=plan.workers, micro_batch=plan.micro_batch, seed=plan.seed)
    held_out = Sequences(work / "held_out.u16", length=model.shape.context, seed=plan.seed)
    budget = plan.minutes * 60
    recent: list[float] = []
    measured = progress.seconds
    with workers, (work / f"{name}.csv").open("a", newline="") as log:
        workers.step(0, plan.workers * 2)  # compiling is not training and must not eat into its budget
        rows = csv.writer(log)
        if log.tell() == 0:
            rows.writerow(CSV_FIELDS)
        while progress.seconds < budget:
            began = time.monotonic()
            factor = rate(progress.seconds / budget)
            recent.append(workers.step(progress.windows, plan.batches))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = plan.peak_rate * factor
                opt.step()
            progress.step += 1
            progress.windows += plan.batches * plan.micro_batch
            progress.seconds += time.monotonic() - began
            done = progress.seconds >= budget
            if done or progress.seconds - measured >= plan.evaluate_every:
                save(checkpoint, model, opts, progress)
                spent, measured = progress.seconds - measured, progress.seconds
                row = Row(
                    seconds=round(measured),
                    step=progress.step,
                    tokens=progress.windows * model.shape.context,
                    learning_rate=plan.peak_rate * factor,
                    train_loss=sum(recent) / len(recent),
                    held_out_loss=held_out_loss(model, held_out, plan.evaluate_at_end if done else plan.evaluate_on),
                )
                row.write(rows, log)
                speed = len(recent) * plan.batches * plan.micro_batch * model.shape.context / spent
                print(f"{row}  {speed:5.0f} tok/s", file=sys.stderr, flush=True)
                recent.clear()
