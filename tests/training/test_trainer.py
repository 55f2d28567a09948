from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.errors import (
    AdapterError,
    BaseMismatchError,
    DataError,
    TrainingDivergedError,
    TrainingPausedError,
    UnreadableModelError,
)
from agent.llm.adapter import from_bytes, read_adapter
from agent.llm.adapter_gguf import read_gguf_adapter, write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.training.checkpoint import FILE_NAME
from agent.training.evaluate import evaluate
from agent.training.job import (
    EvaluateJob,
    MeasureJob,
    MeasureVariant,
    Progress,
    ScaledAdapter,
    TrainJob,
    Variant,
)
from agent.training.leaving import Leaving
from agent.training.measure import measure
from agent.training.session import LAST_GOOD
from agent.training.trainer import train
from tests.models import random_adapter, windows

MakeJob = Callable[..., TrainJob]


def ignore(_progress: Progress) -> None:
    pass


class LeaveAfter(Leaving):
    """Asks to leave once a step is done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def watch(self, progress: Progress) -> None:
        if progress.phase == "train" and progress.step == self.step:
            self._asked.set()


def test_training_lowers_the_loss_and_writes_the_adapter_in_every_form(make_job: MakeJob, tiny_q8: Path) -> None:
    seen: list[Progress] = []
    job = make_job(steps=12, warmup_steps=2)
    result = train(job, seen.append, Leaving())
    assert result.last_loss < 0.8 * result.first_loss
    assert result.steps == 12
    assert result.resumed_from == 0
    assert result.tokens == 12 * 4 * 47
    assert result.peak_rss_mb > 50
    assert [p.step for p in seen if p.phase == "train"] == list(range(1, 13))
    assert {p.phase for p in seen} == {"load", "train", "write"}
    data = result.adapter_path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == result.adapter_sha256
    adapter = from_bytes(data)
    assert read_adapter(result.peft_path).to_bytes() == data
    assert read_gguf_adapter(result.gguf_path, open_gguf(tiny_q8)).to_bytes() == data
    assert adapter.base_sha256 == job.base_sha256


def test_llama_cpp_and_the_training_model_agree_on_what_was_learnt(make_job: MakeJob) -> None:
    job = make_job(steps=12)
    result = train(job, ignore, Leaving())
    by_torch = measure(
        MeasureJob(
            base_path=job.base_path,
            windows_path=job.windows_path,
            variants=(MeasureVariant(name="base"), MeasureVariant(name="new", adapter=result.adapter_path)),
            batch_size=5,
        ),
        ignore,
        Leaving(),
    )
    by_llama = evaluate(
        EvaluateJob(
            base_path=job.base_path,
            windows_path=job.windows_path,
            variants=(
                Variant(name="base"),
                Variant(name="new", adapters=(ScaledAdapter(path=result.gguf_path),)),
                Variant(name="none", adapters=(ScaledAdapter(path=result.gguf_path, scale=0.0),)),
            ),
        ),
        ignore,
        Leaving(),
    )
    assert by_torch.targets == by_llama.targets == 12 * 47
    assert by_llama.losses["base"] == pytest.approx(by_torch.losses["base"], abs=0.01)
    assert by_llama.losses["new"] == pytest.approx(by_torch.losses["new"], abs=0.01)
    assert by_llama.losses["none"] == pytest.approx(by_llama.losses["base"], abs=1e-5)
    assert by_llama.losses["new"] < by_llama.losses["base"] - 0.5


def test_the_same_job_gives_the_same_bytes(make_job: MakeJob, tmp_path: Path) -> None:
    hashes = {
        train(make_job(out_dir=tmp_path / name, checkpoint_dir=tmp_path / f"c{name}"), ignore, Leaving()).adapter_sha256
        for name in ("a", "b")
    }
    assert len(hashes) == 1
    other = train(make_job(seed=1, out_dir=tmp_path / "c", checkpoint_dir=tmp_path / "cc"), ignore, Leaving())
    assert other.adapter_sha256 not in hashes


def test_paused_training_goes_on_to_the_very_same_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    whole = train(make_job(checkpoint_dir=tmp_path / "other"), ignore, Leaving())
    job = make_job()
    leaving = LeaveAfter(2)
    with pytest.raises(TrainingPausedError, match="step 2 of 6"):
        train(job, leaving.watch, leaving)
    again = LeaveAfter(4)
    with pytest.raises(TrainingPausedError, match="step 4 of 6"):
        train(job, again.watch, again)
    seen: list[Progress] = []
    resumed = train(job, seen.append, Leaving())
    assert resumed.resumed_from == 4
    assert [p.step for p in seen if p.phase == "train"] == [5, 6]
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert (resumed.first_loss, resumed.tokens) == (whole.first_loss, whole.tokens)


class LeaveInside(Leaving):
    """Asks to leave in the middle of a step, after so many uses of a frozen weight."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.uses = uses

    def check(self) -> None:
        self.uses -= 1
        if self.uses == 0:
            self._asked.set()
        super().check()


@pytest.mark.parametrize("uses", [3, 20, 50, 71, 90])
def test_a_step_is_left_in_its_middle_and_done_again(make_job: MakeJob, tmp_path: Path, uses: int) -> None:
    whole = train(make_job(checkpoint_dir=tmp_path / "other"), ignore, Leaving())
    with pytest.raises(TrainingPausedError):
        train(make_job(), ignore, LeaveInside(uses))
    resumed = train(make_job(), ignore, Leaving())
    assert resumed.resumed_from < 6
    assert resumed.adapter_sha256 == whole.adapter_sha256


def test_a_finished_job_is_not_trained_again(make_job: MakeJob) -> None:
    first = train(make_job(), ignore, Leaving())
    seen: list[Progress] = []
    again = train(make_job(), seen.append, Leaving())
    assert not [p for p in seen if p.phase == "train"]
    assert again.adapter_sha256 == first.adapter_sha256


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_used(make_job: MakeJob) -> None:
    job = make_job()
    train(job, ignore, Leaving())
    for changed in (make_job(seed=3), make_job(learning_rate=1e-3), make_job(rank=2), make_job(steps=7)):
        assert train(changed, ignore, Leaving()).resumed_from == 0
    windows(job.windows_path, count=12, length=48, seed=9)
    assert train(job, ignore, Leaving()).resumed_from == 0
    path = job.checkpoint_dir / FILE_NAME
    path.write_bytes(path.read_bytes()[:1000])
    assert train(job, ignore, Leaving()).resumed_from == 0


def test_training_goes_on_from_a_start_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    first = train(make_job(steps=10), ignore, Leaving())
    second = train(make_job(start_adapter=first.adapter_path, out_dir=tmp_path / "second"), ignore, Leaving())
    assert second.first_loss < first.first_loss - 0.3
    with pytest.raises(AdapterError):
        train(make_job(start_adapter=first.adapter_path, rank=8), ignore, Leaving())


def test_a_diverging_training_stops_and_keeps_the_last_good_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    adapter = random_adapter(open_gguf(job.base_path), rank=4, alpha=8.0, names=list(job.target_modules), size=1e15)
    start = tmp_path / "start.safetensors"
    start.write_bytes(adapter.to_bytes())
    with pytest.raises(TrainingDivergedError, match="step 1 of 6") as caught:
        train(make_job(start_adapter=start), ignore, Leaving())
    assert "learning rate" in caught.value.advice
    kept = from_bytes((job.out_dir / LAST_GOOD).read_bytes())
    assert kept.shapes == adapter.shapes
    assert not (job.out_dir / "adapter.safetensors").exists()


def test_unusable_input_is_told_apart(make_job: MakeJob, tiny_f32: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseMismatchError):
        train(make_job(base_path=tiny_f32), ignore, Leaving())
    with pytest.raises(UnreadableModelError):
        train(make_job(base_path=tmp_path / "missing.gguf"), ignore, Leaving())
    with pytest.raises(AdapterError, match="fc1"):
        train(make_job(target_modules=("fc1",)), ignore, Leaving())
    foreign = windows(tmp_path / "foreign.npz", count=2, length=16, vocab=5000)
    text = tmp_path / "text.npz"
    text.write_text("no windows")
    flat = tmp_path / "flat.npz"
    np.savez(flat, tokens=np.zeros(9, dtype=np.uint32))
    for path in (foreign, text, flat, tmp_path / "missing.npz"):
        with pytest.raises(DataError, match=path.name):
            train(make_job(windows_path=path), ignore, Leaving())


def test_an_evaluation_refuses_an_adapter_of_another_base(
    make_job: MakeJob, tiny_q8: Path, untied_f32: Path, tmp_path: Path
) -> None:
    base = open_gguf(untied_f32)
    write_gguf_adapter(random_adapter(base, rank=2, alpha=2.0, names=["k_proj"]), base, tmp_path / "a.gguf")
    job = EvaluateJob(
        base_path=tiny_q8,
        windows_path=make_job().windows_path,
        variants=(Variant(name="x", adapters=(ScaledAdapter(path=tmp_path / "a.gguf"),)),),
    )
    with pytest.raises(AdapterError):
        evaluate(job, ignore, Leaving())
