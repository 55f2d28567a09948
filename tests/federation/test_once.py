from __future__ import annotations

from pathlib import Path

import pytest

from agent.federation.once import once
from agent.training.job import EvaluateJob, EvaluateResult, Variant


def job(**over: object) -> EvaluateJob:
    given = {"base_path": "b.gguf", "windows_path": "w.npz", "variants": [Variant(name="base")]}
    return EvaluateJob.model_validate(given | over)


async def done(path: Path, what: EvaluateJob, loss: float) -> float:
    async def work() -> EvaluateResult:
        return EvaluateResult(losses={"base": loss}, targets=1, seconds=0.5, peak_rss_mb=1.0)

    return (await once(path, what, EvaluateResult, work)).losses["base"]


async def test_the_same_job_is_done_once_and_another_one_again(tmp_path: Path) -> None:
    path = tmp_path / "judged.json"
    assert await done(path, job(), 1.0) == 1.0
    assert await done(path, job(threads=7), 2.0) == 1.0
    assert await done(path, job(max_windows=3), 3.0) == 3.0
    assert await done(path, job(), 4.0) == 4.0


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"job": 1}', b"\xff"])
async def test_a_damaged_result_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "judged.json"
    await done(path, job(), 1.0)
    path.write_bytes(damage)
    assert await done(path, job(), 2.0) == 2.0
