"""Training against PEFT in float32 on the unpacked model: the same curve, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.data.packing import WindowSet
from agent.llm.adapter import Adapter, read_adapter
from agent.llm.gguf_file import GgufModel, open_gguf, sha256_file
from agent.training.decoder import Decoder
from agent.training.job import TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel
from agent.training.schedule import windows_at
from agent.training.trainer import train
from agent.training.windows_file import read_windows, write_windows
from tests.models import quantise, windows
from tests.training.gradients import backward
from tests.training.peers import Peer, peer_factors, peer_loss, peft_of

STEPS, WARMUP, DECAY, CLIP, PEAK = 50, 5, 0.05, 1.0, 2.5e-3

MakeJob = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def tiny_q4(tiny_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantise(tiny_f32, tmp_path_factory.mktemp("peft") / "tiny-q4_k.gguf", "MOSTLY_Q4_K_M")


@pytest.fixture(scope="module")
def windows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of which the first third does not count, as in conversations, and the second half is another document."""
    path = windows(tmp_path_factory.mktemp("peft") / "windows.npz", count=60, length=48)
    plain = read_windows(path, n_vocab=320)
    places = np.broadcast_to(np.arange(48), plain.tokens.shape)
    targets = (places % 24 >= 8) & (np.arange(60)[:, None] % 3 != 0) | (places > 40)
    write_windows(path, WindowSet(plain.tokens, targets, (places >= 24).astype(np.uint16)))
    return path


def first_adapter(base: GgufModel, job: TrainJob) -> Adapter:
    """Give the adapter that a job of this seed begins with."""
    return LoraModel(
        model=Decoder(base),
        rank=job.rank,
        alpha=job.alpha,
        target_modules=job.target_modules,
        base_sha256=job.base_sha256,
        seed=job.seed,
    ).extract()


def rate(step: int) -> float:
    """Give the learning rate by the words of the documentation: a linear rise, then a cosine down to a tenth."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP - 1))) / 2)


def peft_curve(model: Peer, given: WindowSet, job: TrainJob) -> list[float]:
    """Train with plain torch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=DECAY)
    losses = []
    for step in range(STEPS):
        batch = given.take(windows_at(step, batch_size=job.batch_size, count=len(given), seed=job.seed))
        loss = peer_loss(model, batch) / batch.counted
        optimiser.zero_grad()
        backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def plan(tiny_q4: Path, windows_file: Path) -> dict[str, Any]:
    return {
        "base_path": tiny_q4,
        "base_sha256": "0" * 64,
        "windows_path": windows_file,
        "steps": STEPS,
        "batch_size": 3,
        "warmup_steps": WARMUP,
        "weight_decay": DECAY,
        "grad_clip": CLIP,
        "learning_rate": PEAK,
        "seed": 3,
        "rank": 4,
        "alpha": 8.0,
    }


@pytest.fixture(scope="module")
def expected(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Peer]:
    """The curve of PEFT, and its model after the last step."""
    job = TrainJob(**plan, checkpoint_dir=Path("unused"), out_dir=Path("unused"))
    base, given = open_gguf(job.base_path), read_windows(job.windows_path, n_vocab=320)
    model = peft_of(base, first_adapter(base, job), tmp_path_factory.mktemp("peft") / "start")
    return peft_curve(model, given, job), model


@pytest.mark.parametrize(
    ("changes", "tolerances"),
    [
        ({"compute": "float32"}, (1e-4, 0.001)),
        ({"compute": "float32", "micro_batch": 2, "checkpointing": True}, (1e-4, 0.001)),
        ({"compute": "bfloat16"}, (0.02, 0.15)),
    ],
    ids=["float32", "float32 in several passes", "bfloat16"],
)
def test_the_loss_falls_as_with_peft_in_float32(
    make_job: MakeJob,
    plan: dict[str, Any],
    expected: tuple[list[float], Peer],
    changes: dict[str, Any],
    tolerances: tuple[float, float],
) -> None:
    losses, peer = expected
    every_step, learnt = tolerances
    sha256 = sha256_file(plan["base_path"])
    result = train(make_job(**(plan | {"base_sha256": sha256} | changes)), lambda _: None, Leaving())
    assert 1.0 < losses[-1] < 0.6 * losses[0], "much is learnt, and not all"
    assert result.final_loss == pytest.approx(losses[-1], rel=0.01)
    assert result.losses == pytest.approx(losses, rel=every_step)
    adapter = read_adapter(result.peft_path)
    for path, (a, b) in peer_factors(peer).items():
        found = adapter.modules[path].b @ adapter.modules[path].a  # type: ignore[index]
        wanted = (b @ a).detach().numpy()
        assert np.linalg.norm(found - wanted) < learnt * np.linalg.norm(wanted), path
