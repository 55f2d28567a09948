from pathlib import Path

import pytest

from agent.training.speed import (
    GeneratingSpeed,
    RoundSize,
    TrainingSpeed,
    measure_generating,
    measure_training,
    round_seconds,
)
from tests.models import write_model

SIZE = RoundSize(steps=40, batch=2, window=64, judged=8, rank=4, alpha=8.0, target_modules=("q_proj", "down_proj"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base.gguf")


def test_a_round_takes_starting_training_and_reading_the_judged_windows_with_two_models() -> None:
    training = TrainingSpeed(tok_s=512.0, start_seconds=3.0, peak_mb=1.0, compute="float32")
    generating = GeneratingSpeed(read_tok_s=1024.0, tok_s=1.0, peak_mb=1.0)
    assert round_seconds(SIZE, training, generating) == 3.0 + 40 * 2 * 64 / 512 + 2 * 8 * 64 / 1024


def test_generating_is_measured_with_llama_cpp(base: Path) -> None:
    found = measure_generating(base, threads=1)
    assert found.read_tok_s > found.tok_s > 0
    assert found.peak_mb > 10


async def test_training_is_measured_in_a_worker_that_does_as_many_tokens_as_a_round_does(
    base: Path, tmp_path: Path
) -> None:
    steps: list[int] = []
    room = tmp_path / "room"
    room.mkdir()
    found = await measure_training(
        base, SIZE, threads=1, room=room, compute="float32", on_progress=lambda p: steps.append(p.step)
    )
    assert max(steps) == 4
    assert found.tok_s > 0
    assert found.start_seconds > 0
    assert found.peak_mb > 50
    assert found.compute == "float32"
