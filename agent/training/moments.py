"""An optimiser's moments in a file, so that the next training goes on where this one ended.

A round has few steps. An AdamW that begins without moments spends them finding out how large gradients are: its first
step is as large for noise as for what there is to learn, and the mean of many devices' steps is mostly noise. With the
moments of its last round a device goes on as if there were no rounds, as the workers of DiLoCo do (Douillard et al.
2023, *DiLoCo*, algorithm 1, where each keeps its inner optimiser).

Moments belong to the parameters that they were taken of: they mean nothing after a merge that decomposed the adapter
anew, and are not gone on with where base, rank, scaling, layers or trained factors are others. They say something about
the text that they come from, and never leave the device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agent.paths import write_atomically
from agent.training.job import TrainJob

FILE_NAME = "moments.safetensors"
NAMES = ("exp_avg", "exp_avg_sq")
"""Running means of the gradients and of their squares."""

_OF = {"base_sha256", "rank", "alpha", "rslora", "target_modules", "last_layers", "factors"}
_ENTRY = "bramble-moments"


def write_moments(path: Path, job: TrainJob, updates: int, moments: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Write moments in the order of their parameters.

    Args:
        path: of the file.
        job: whose training they come from.
        updates: how often they were brought up to date.
        moments: ``NAMES`` of each parameter, float32.

    Raises:
        DiskFullError: there was no room.
    """
    tensors = {f"{index}.{name}": each[name] for index, each in enumerate(moments) for name in NAMES}
    about = {"of": _of(job), "updates": updates}
    write_atomically(path, save(tensors, metadata={_ENTRY: json.dumps(about)}))


def read_moments(
    path: Path, job: TrainJob, parameters: Sequence[torch.Tensor]
) -> tuple[int, list[dict[str, torch.Tensor]]] | None:
    """Read what :func:`write_moments` wrote; None where it is of other parameters, damaged, or not there.

    Args:
        path: of the file.
        job: the training that would go on with them.
        parameters: that they must fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ENTRY])
            if about["of"] != _of(job):
                return None
            moments = [
                {name: file.get_tensor(f"{index}.{name}") for name in NAMES} for index, _ in enumerate(parameters)
            ]
            updates = int(about["updates"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    for parameter, each in zip(parameters, moments, strict=True):
        if any(moment.shape != parameter.shape or moment.dtype != torch.float32 for moment in each.values()):
            return None
        if not all(torch.isfinite(moment).all() for moment in each.values()) or (each[NAMES[1]] < 0).any():
            return None
    return (updates, moments) if updates >= 1 else None


def _of(job: TrainJob) -> dict[str, object]:
    """Say what a job's parameters are."""
    found: dict[str, object] = json.loads(job.model_dump_json(include=_OF))
    return found
