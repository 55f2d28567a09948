"""Where training stands, in one file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agent.paths import write_atomically
from agent.training.job import TrainJob

FILE_NAME = "checkpoint.safetensors"
_NOT_WHAT_IS_LEARNT = {
    *("threads", "compute", "checkpoint_dir", "checkpoint_seconds", "out_dir"),
    *("base_path", "windows_path", "start_adapter"),  # their contents count, not where they lie
}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Standing:
    """How far training is.

    Attributes:
        step: steps done.
        losses: nats a token of each step done.
        tokens: target tokens trained on.
    """

    step: int
    losses: tuple[float, ...]
    tokens: int


def fingerprint(job: TrainJob) -> str:
    """Give a name to what a job learns from, by content: a checkpoint of another job is none of this one's."""
    digest = hashlib.sha256(job.model_dump_json(exclude=_NOT_WHAT_IS_LEARNT).encode())
    start = job.start_adapter
    if start is not None and start.is_dir():
        start = start / "adapter_model.safetensors"
    for path in (job.windows_path, start):
        digest.update(b"\0")
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_checkpoint(
    directory: Path,
    job_fingerprint: str,
    standing: Standing,
    parameters: Sequence[torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint, over the one before."""
    tensors: dict[str, torch.Tensor] = {}
    for index, parameter in enumerate(parameters):
        tensors[f"{index}.value"] = parameter.detach()
        for name in _MOMENTS:
            tensors[f"{index}.{name}"] = optimiser.state[parameter][name]
    about = {
        "fingerprint": job_fingerprint,
        "step": standing.step,
        "losses": standing.losses,
        "tokens": standing.tokens,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / FILE_NAME, save(tensors, metadata={"bramble": json.dumps(about)}))


def load_checkpoint(
    directory: Path,
    job_fingerprint: str,
    parameters: Sequence[torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> Standing | None:
    """Go back to a checkpoint of the same job and say where it stands; None, with nothing changed, without one."""
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["bramble"])
            if about["fingerprint"] != job_fingerprint:
                return None
            standing = Standing(int(about["step"]), tuple(float(x) for x in about["losses"]), int(about["tokens"]))
            values = [file.get_tensor(f"{index}.value") for index in range(len(parameters))]
            moments = [{name: file.get_tensor(f"{i}.{name}") for name in _MOMENTS} for i in range(len(parameters))]
    except (SafetensorError, OSError, ValueError, KeyError):
        return None  # damaged, or of another version: training begins again, which loses time and nothing else
    if any(value.shape != parameter.shape for value, parameter in zip(values, parameters, strict=True)):
        return None
    with torch.no_grad():
        for parameter, value, moment in zip(parameters, values, moments, strict=True):
            parameter.copy_(value)
            optimiser.state[parameter] = {"step": torch.tensor(float(standing.step)), **moment}
    return standing
