"""The stages of a training alone, in order; workers are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import agent.federation.alone.training as alone
from agent.errors import BrambleError, ConsentMissingError, DoesNotFitError, TrainingDivergedError, WorkerCrashedError
from agent.federation.alone.order import Order, Wanted, take_order
from agent.federation.alone.record import TrainingRecord
from agent.federation.alone.room import MADE, OutRoom
from agent.paths import Home
from agent.service import remove_source
from agent.training.job import (
    EvaluateJob,
    EvaluateResult,
    Job,
    PlanJob,
    PrepareJob,
    PrepareResult,
    Result,
    TrainJob,
    TrainResult,
)
from tests.federation.alone.plans import plan
from tests.member import Member, make_member


@pytest.fixture
def member(tmp_path: Path, tiny_q8: Path) -> Member:
    text = tmp_path / "notes.txt"
    text.write_text("Some words of a person about a garden, and what grew in it. " * 9)
    return make_member(Home(tmp_path / "home"), tiny_q8, text=text)


@pytest.fixture
def order(member: Member) -> Order:
    return take_order(member.home, Wanted())


class Workers:
    """Does jobs at once, as far as files tell; fails, or does something else first, where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}
        self.fits = True
        monkeypatch.setattr(alone, "run_worker", self._run)

    def fail(self, kind: str, error: BrambleError) -> None:
        def failing() -> None:
            raise error

        self.before[kind] = failing

    async def _run(self, job: Job, **_options: object) -> Result:
        self.kinds.append(job.kind)
        self.before.get(job.kind, lambda: None)()
        match job:
            case PrepareJob():
                return prepared(job)
            case PlanJob():
                return plan(fits=self.fits, instead=("Use a smaller base.",))
            case TrainJob():
                return trained(job)
            case EvaluateJob():
                losses = {"base": 3.0, "adapter": 2.0}
                return EvaluateResult(losses=losses, targets=50, seconds=1.0, peak_rss_mb=90.0)
        pytest.fail(f"nobody asks for {job.kind}")


def prepared(job: PrepareJob) -> PrepareResult:
    return PrepareResult(
        train_path=job.out_dir / "train.npz",
        heldout_path=job.out_dir / "heldout.npz",
        documents=1,
        passages=9,
        repeats=0,
        train_windows=8,
        heldout_windows=1,
        tokens=256,
        samples=(),
        examples={"EMAIL": ("a…@example.org",)},
        removed={"EMAIL": 1},
    )


def trained(job: TrainJob) -> TrainResult:
    job.out_dir.mkdir()
    (job.out_dir / "peft").mkdir()
    for name in ("adapter.safetensors", "adapter.gguf", "peft/adapter_config.json"):
        (job.out_dir / name).write_text(name)
    return TrainResult(
        steps=10,
        resumed_from=4,
        tokens=99,
        first_loss=3.0,
        last_loss=2.0,
        losses=(3.0,) * 10,
        heldout=((0, 3.0), (5, 2.0), (10, 2.5)),
        best_step=5,
        stopped_early=True,
        seed=job.seed,
        seconds=5.0,
        tok_s=400.0,
        compute="float32",
        peak_rss_mb=310.0,
        adapter_path=job.out_dir / "adapter.safetensors",
        gguf_path=job.out_dir / "adapter.gguf",
        peft_path=job.out_dir / "peft",
        adapter_sha256="a" * 64,
    )


async def train(member: Member, order: Order, room: OutRoom) -> TrainingRecord:
    return await alone.train_alone(member.home, order, room, on_progress=lambda _stage, _progress: None)


async def test_what_came_of_it_is_written_down_beside_what_was_planned(
    member: Member, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, room = Workers(monkeypatch), OutRoom(tmp_path / "out")
    record = await train(member, order, room)
    assert workers.kinds == ["prepare", "plan", "train", "evaluate"]
    assert sorted(path.name for path in room.out.iterdir()) == sorted(MADE)
    written = (room.out / "training.json").read_text()
    assert TrainingRecord.model_validate_json(written) == record
    assert (record.steps, record.resumed_from, record.best_step, record.stopped_early) == (10, 4, 5, True)
    assert record.memory_mb.error == pytest.approx(300 / 310 - 1)
    assert record.seconds.planned == 16.0, "6 of 12 steps were done, of a second each, by this worker"
    assert record.text["removed"] == {"EMAIL": 1}
    assert "example.org" not in written, "what was taken out of the text is written down nowhere"


@pytest.mark.parametrize("kind", ["plan", "train", "evaluate"])
async def test_a_stage_that_was_done_is_not_done_again(
    member: Member, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    workers, room = Workers(monkeypatch), OutRoom(tmp_path / "out")
    workers.fail(kind, WorkerCrashedError("it was killed", advice="Start it again."))
    with pytest.raises(WorkerCrashedError):
        await train(member, order, room)
    assert not (room.out / "training.json").exists()
    workers.before.clear()
    await train(member, order, room)
    assert sorted(workers.kinds) == sorted(["prepare", "plan", "train", "evaluate", kind])


async def test_what_does_not_fit_is_not_begun_and_is_planned_again_when_memory_is_free(
    member: Member, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, room = Workers(monkeypatch), OutRoom(tmp_path / "out")
    workers.fits = False
    with pytest.raises(DoesNotFitError) as caught:
        await train(member, order, room)
    assert caught.value.advice == "Use a smaller base."
    workers.fits = True
    await train(member, order, room)
    assert workers.kinds == ["prepare", "plan", "plan", "train", "evaluate"]


async def test_consent_that_is_withdrawn_meanwhile_takes_back_what_was_learned(
    member: Member, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, room = Workers(monkeypatch), OutRoom(tmp_path / "out")
    workers.before["evaluate"] = lambda: remove_source(member.home, order.sources[0])
    with pytest.raises(ConsentMissingError):
        await train(member, order, room)
    assert list(room.out.iterdir()) == []


async def test_training_that_diverges_says_which_option_helps_and_where_the_last_good_adapter_is(
    member: Member, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, room = Workers(monkeypatch), OutRoom(tmp_path / "out")
    workers.fail("train", TrainingDivergedError("loss nan at step 3", advice="Use less."))
    with pytest.raises(TrainingDivergedError, match="loss nan at step 3") as caught:
        await train(member, order, room)
    assert "--lr" in caught.value.advice
    assert str(room.trained / "last_good.safetensors") in caught.value.advice


async def test_a_plan_alone_keeps_nothing(member: Member, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch)
    before = sorted(member.home.root.rglob("*"))
    found = await alone.plan_alone(order, on_progress=lambda _stage, _progress: None)
    assert found.steps == json.loads(found.model_dump_json())["steps"] == 12
    assert workers.kinds == ["prepare", "plan"]
    assert sorted(member.home.root.rglob("*")) == before
