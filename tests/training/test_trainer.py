from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
from agent.training.checkpoint import FILE_NAME, fingerprint, load_checkpoint
from agent.training.decoder import Decoder, Pass
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
from agent.training.lora import put_on
from agent.training.measure import measure
from agent.training.session import LAST_GOOD
from agent.training.trainer import train
from tests.models import random_adapter, windows
from tests.training.leavers import LeaveAfter, ignore, masked_windows

MakeJob = Callable[..., TrainJob]


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


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_several_passes_learn_what_one_learns(make_job: MakeJob, tmp_path: Path, micro_batch: int) -> None:
    path = masked_windows(tmp_path / "masked.npz", counting=[1, 0.05, 0, 0.5, 0.9, 0.02])
    whole = train(make_job(windows_path=path, out_dir=tmp_path / "whole"), ignore, Leaving())
    job = make_job(windows_path=path, micro_batch=micro_batch, checkpointing=micro_batch == 2)
    parts = train(job, ignore, Leaving())
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert parts.tokens == whole.tokens


def test_rslora_scales_by_the_root_of_the_rank_in_every_reader(make_job: MakeJob, tiny_q8: Path) -> None:
    result = train(make_job(rslora=True, rank=16, alpha=4.0, steps=2), ignore, Leaving())
    for adapter in (
        from_bytes(result.adapter_path.read_bytes()),
        read_adapter(result.peft_path),
        read_gguf_adapter(result.gguf_path, open_gguf(tiny_q8)),
    ):
        assert adapter.scaling == pytest.approx(4.0 / 16**0.5)
    assert json.loads((result.peft_path / "adapter_config.json").read_text())["lora_alpha"] / 16 == pytest.approx(1.0)
    plain = train(make_job(rank=16, alpha=16.0, steps=2), ignore, Leaving())
    assert plain.losses == result.losses, "alpha 4 by the root of 16 is alpha 16 by 16"


def test_the_seed_is_recorded_with_the_result(make_job: MakeJob) -> None:
    assert train(make_job(seed=7, steps=1), ignore, Leaving()).seed == 7


@pytest.mark.parametrize("last", [1, 2])
def test_only_the_last_layers_are_trained(make_job: MakeJob, last: int) -> None:
    result = train(make_job(last_layers=last), ignore, Leaving())
    adapter = from_bytes(result.adapter_path.read_bytes())
    assert {int(path.split(".")[2]) for path in adapter.modules} == set(range(2 - last, 2))
    assert result.last_loss < result.first_loss


def test_with_the_trunk_cache_the_losses_are_the_same_up_to_bfloat16(make_job: MakeJob, tmp_path: Path) -> None:
    plain = train(make_job(last_layers=1, steps=8, checkpoint_dir=tmp_path / "plain"), ignore, Leaving())
    seen: list[Progress] = []
    job = make_job(last_layers=1, steps=8, trunk_cache=True)
    cached = train(job, seen.append, Leaving())
    assert cached.losses == pytest.approx(plain.losses, abs=0.01)
    assert cached.losses != plain.losses
    assert [(p.step, p.steps) for p in seen if p.phase == "trunk"] == [(4, 12), (8, 12), (12, 12)]
    assert (job.checkpoint_dir / "trunk.bf16").stat().st_size == 12 * 47 * 256 * 2


def test_the_trunk_is_computed_once_and_of_the_wanted_windows_alone(make_job: MakeJob) -> None:
    job = make_job(last_layers=1, steps=2, trunk_cache=True, batch_size=3)
    leaving = LeaveAfter(6, "trunk")
    with pytest.raises(TrainingPausedError, match="step 0 of 2"):
        train(job, leaving.watch, leaving)
    seen: list[Progress] = []
    train(job, seen.append, Leaving())
    assert not [p for p in seen if p.phase == "trunk"], "six windows of twelve are all that two steps ask for"


@pytest.mark.parametrize("change", ["windows", "compute", "start"])
def test_the_trunk_of_another_job_is_not_used(make_job: MakeJob, tmp_path: Path, change: str) -> None:
    job = make_job(last_layers=1, steps=2, trunk_cache=True)
    first = train(job, ignore, Leaving())
    later = job.model_copy(update={"compute": "bfloat16"} if change == "compute" else {})
    if change == "windows":
        windows(job.windows_path, count=12, length=48, seed=9)
    if change == "start":
        later = job.model_copy(update={"start_adapter": first.adapter_path, "out_dir": tmp_path / "later"})
    (job.checkpoint_dir / FILE_NAME).unlink()  # where it began otherwise, its arithmetic would be kept
    seen: list[Progress] = []
    found = train(later, seen.append, Leaving())
    assert [p.step for p in seen if p.phase == "trunk"] == [4, 8]
    fresh = train(later.model_copy(update={"checkpoint_dir": tmp_path / "fresh"}), ignore, Leaving())
    assert found.adapter_sha256 == fresh.adapter_sha256


def test_where_every_layer_learns_there_is_no_trunk_to_keep(make_job: MakeJob) -> None:
    job = make_job(steps=1, trunk_cache=True, last_layers=2)
    train(job, ignore, Leaving())
    assert not (job.checkpoint_dir / "trunk.bf16").exists()


def test_training_goes_on_from_a_start_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    first = train(make_job(steps=10), ignore, Leaving())
    second = train(make_job(start_adapter=first.adapter_path, out_dir=tmp_path / "second"), ignore, Leaving())
    assert second.first_loss < first.first_loss - 0.3
    with pytest.raises(AdapterError):
        train(make_job(start_adapter=first.adapter_path, rank=8), ignore, Leaving())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize(("factors", "frozen"), [("a", "b"), ("b", "a")])
def test_a_frozen_factor_stays_as_it_was(
    make_job: MakeJob, tmp_path: Path, tiny_q8: Path, factors: str, frozen: str, *, checkpointing: bool
) -> None:
    start = random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=make_job().target_modules)
    path = tmp_path / "start.safetensors"
    path.write_bytes(start.to_bytes())
    job = make_job(steps=6, start_adapter=path, factors=factors, checkpointing=checkpointing)
    result = train(job, ignore, Leaving())
    learnt = read_adapter(result.adapter_path)
    for name, before in start.modules.items():
        after = learnt.modules[name]
        assert np.array_equal(getattr(after, frozen), getattr(before, frozen))
        assert not np.array_equal(getattr(after, factors), getattr(before, factors))


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


def spoilt(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Spoil the loss of one pass."""
    loss, passes = Decoder.loss, []

    def spoiling(model: Decoder, given: Pass, **named: Any) -> torch.Tensor:
        passes.append(given)
        found = loss(model, given, **named)
        return how(found) if len(passes) == at else found

    monkeypatch.setattr(Decoder, "loss", spoiling)


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * torch.nan


@pytest.mark.parametrize("how", [lambda loss: loss * torch.inf, _BadGradient.apply], ids=["loss", "gradient"])
@pytest.mark.parametrize("at", [7, 8], ids=["first pass", "last pass"])
def test_a_number_that_is_none_stops_training_with_the_adapter_of_the_step_before(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, how: Any
) -> None:
    good = make_job(micro_batch=2, checkpoint_dir=tmp_path / "good", checkpoint_seconds=0.0)
    leaving = LeaveAfter(3)
    with pytest.raises(TrainingPausedError):
        train(good, leaving.watch, leaving)
    kept = load_checkpoint(good.checkpoint_dir, fingerprint(good))
    assert kept is not None
    spoilt(monkeypatch, at, how)
    job = make_job(micro_batch=2)
    with pytest.raises(TrainingDivergedError, match="step 4 of 6") as caught:
        train(job, ignore, Leaving())
    assert "learning rate" in caught.value.advice
    last_good = from_bytes((job.out_dir / LAST_GOOD).read_bytes())
    lora = put_on(Decoder(open_gguf(job.base_path)), last_good)
    for parameter, value in zip(lora.parameters(), kept[1].values, strict=True):
        assert torch.equal(parameter, value)
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
    silent = masked_windows(tmp_path / "silent.npz", counting=[0, 0])
    for path in (foreign, text, flat, silent, tmp_path / "missing.npz"):
        with pytest.raises(DataError, match=path.name):
            train(make_job(windows_path=path), ignore, Leaving())
        with pytest.raises(DataError, match=path.name):
            train(make_job(heldout_path=path), ignore, Leaving())


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
