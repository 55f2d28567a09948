from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.training.job import TrainJob
from tests.models import windows


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several threads spin while they wait for each other, which a busy machine pays for dearly."""
    torch.set_num_threads(1)


@pytest.fixture
def windows_path(tmp_path: Path) -> Path:
    """Learnable windows: 12 of 48 tokens."""
    return windows(tmp_path / "windows.npz", count=12, length=48)


@pytest.fixture
def make_job(tiny_q8: Path, windows_path: Path, tmp_path: Path) -> Callable[..., TrainJob]:
    """Make train jobs on the tiny base, with anything changed."""

    def make(**changes: Any) -> TrainJob:
        given: dict[str, Any] = {
            "base_path": tiny_q8,
            "base_sha256": hashlib.sha256(tiny_q8.read_bytes()).hexdigest(),
            "windows_path": windows_path,
            "steps": 6,
            "batch_size": 4,
            "rank": 4,
            "alpha": 8.0,
            "learning_rate": 5e-3,
            "compute": "float32",
            "checkpoint_dir": tmp_path / "checkpoint",
            "checkpoint_seconds": 1000.0,
            "out_dir": tmp_path / "out",
        }
        return TrainJob(**(given | changes))

    return make
