"""Where training stands, in one file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agent.paths import explained_disk, write_atomically
from agent.training.job import TrainJob

FILE_NAME = "checkpoint.safetensors"
_NOT_WHAT_IS_LEARNT = {
    *("threads", "compute", "checkpoint_dir", "checkpoint_seconds", "out_dir"),
    *("base_path", "windows_path", "heldout_path", "start_adapter"),  # their contents count, not where they lie
}
_MOMENTS = ("exp_avg", "exp_avg_sq")
Tensors: TypeAlias = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far training is.

    Attributes:
        losses: nats a token of each step done.
        updates: how many of these changed the adapter; those in which no token counts do not.
        tokens: target tokens trained on.
        compute: the arithmetic it began with, which its successors keep.
        heldout: step and held-out loss of each look.
        windows: windows of the step under way whose gradients were added up already.
        nats: their summed loss.
        elementwise: what did the passes over memory, which its successors keep too.
    """

    losses: tuple[float, ...]
    updates: int
    tokens: int
    compute: Literal["float32", "bfloat16"]
    heldout: tuple[tuple[int, float], ...] = ()
    windows: int = 0
    nats: float = 0.0
    elementwise: str = "torch"


@dataclass(frozen=True, slots=True)
class Memory:
    """What training has learnt so far, in the order of its parameters.

    Attributes:
        values: the parameters.
        moments: of the optimiser.
        gradients: added up in the step under way, empty between steps.
        best: the parameters with the lowest held-out loss, empty without any.
    """

    values: Tensors
    moments: Sequence[Mapping[str, torch.Tensor]]
    gradients: Tensors = ()
    best: Tensors = ()


def fingerprint(job: TrainJob) -> str:
    """Give a name to what a job learns from, by content: a checkpoint of another job is none of this one's."""
    digest = hashlib.sha256(job.model_dump_json(exclude=_NOT_WHAT_IS_LEARNT).encode())
    start = job.start_adapter
    if start is not None and start.is_dir():
        start = start / "adapter_model.safetensors"
    for path in (job.windows_path, job.heldout_path, start):
        digest.update(b"\0")
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_checkpoint(directory: Path, job_fingerprint: str, standing: Standing, memory: Memory) -> None:
    """Write a checkpoint, over the one before.

    Raises:
        DiskFullError: there was no room; the one before is still there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, group in (("value", memory.values), ("gradient", memory.gradients), ("best", memory.best)):
        tensors.update({f"{index}.{name}": tensor.detach() for index, tensor in enumerate(group)})
    for index, moments in enumerate(memory.moments):
        tensors.update({f"{index}.{name}": moments[name] for name in _MOMENTS})
    about = {"fingerprint": job_fingerprint, **asdict(standing)}
    with explained_disk(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / FILE_NAME, save(tensors, metadata={"bramble": json.dumps(about)}))


def load_checkpoint(directory: Path, job_fingerprint: str) -> tuple[Standing, Memory] | None:
    """Read the checkpoint of the same job; None without one, or where it is damaged or of another version."""
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["bramble"])
            if about.pop("fingerprint") != job_fingerprint:
                return None
            standing = _STANDING.validate_python(about)
            names = set(file.keys())

            def group(name: str) -> list[torch.Tensor]:
                return [file.get_tensor(f"{i}.{name}") for i in range(len(names)) if f"{i}.{name}" in names]

            moments = [group(name) for name in _MOMENTS]
            memory = Memory(
                values=group("value"),
                moments=[dict(zip(_MOMENTS, pair, strict=True)) for pair in zip(*moments, strict=True)],
                gradients=group("gradient"),
                best=group("best"),
            )
    except (SafetensorError, OSError, ValueError, KeyError):
        return None  # training begins again, which loses time and nothing else
    return standing, memory


_STANDING = TypeAdapter(Standing)
