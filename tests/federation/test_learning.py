"""One device's work in a round, with a real worker; the plan is made up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.crypto.sealing import SealKey
from agent.errors import DoesNotFitError, TrainingPausedError
from agent.federation.learning import Learned, learn
from agent.federation.messages import Manifest
from agent.federation.planning import most_memory_mb
from agent.federation.store import open_device_store
from agent.federation.text import prepare_text
from agent.paths import Home
from agent.settings import DeviceSettings
from agent.training.job import PlanJob, Progress, TrainJob
from agent.training.process import Workers, run_worker
from tests.federation.alone.plans import plan
from tests.member import Member, make_member

KEY = SealKey.generate()
LIMITED = DeviceSettings(memory_mb=400, compute="float32")


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, tiny_q8: Path) -> Member:
    root = tmp_path_factory.mktemp("member")
    text = root / "notes.txt"
    text.write_text(" ".join(f"On day {n} the bees came to the {n % 7}th row of beans." for n in range(400)))
    return make_member(Home(root / "home"), tiny_q8, text=text)


class Notes:
    """Workers that note what they are asked to do; plans are made up, and trainings are short."""

    def __init__(self, **made_up: Any) -> None:
        self.planned: list[PlanJob] = []
        self.trained: list[TrainJob] = []
        self._plan = plan(**made_up)

    async def __call__(self, job: Any, **options: Any) -> Any:
        if isinstance(job, PlanJob):
            self.planned.append(job)
            return self._plan
        assert isinstance(job, TrainJob)
        self.trained.append(job)
        return await run_worker(job.model_copy(update={"steps": 2, "batch_size": 2}), **options)


async def learnt(
    member: Member, settings: DeviceSettings, number: int, *, workers: Workers, pause: asyncio.Event | None = None
) -> Learned:
    """Learn for a round; with a pause, only until the first step is done."""

    def stop(progress: Progress) -> None:
        if pause is not None and progress.phase == "train":
            pause.set()

    sources = [member.home.root.parent / "notes.txt"]
    with open_device_store(member.home) as store:
        adopted = store.adopted()
        assert adopted is not None
        size = len(member.releases[2].to_bytes())
        return await learn(
            store,
            store.membership,
            settings,
            await prepare_text(store, store.membership, settings, sources),
            sources=sources,
            device="a" * 52,
            round_number=number,
            release=Manifest(number=2, sha256=adopted[1], parent="", size=size, round=2),
            seal_key=KEY.public,
            workers=workers,
            pause=pause,
            on_progress=stop,
        )


@pytest.mark.slow
async def test_a_round_within_a_memory_limit_goes_on_with_the_plan_that_it_began_with(member: Member) -> None:
    workers = Notes()
    with pytest.raises(TrainingPausedError):
        await learnt(member, LIMITED, 3, workers=workers, pause=asyncio.Event())
    learned = await learnt(member, LIMITED, 3, workers=workers)
    assert [job.memory_mb for job in workers.planned] == [400]
    assert (workers.planned[0].rank, workers.planned[0].heldout_path, workers.planned[0].trunk_cache) == (
        4,
        None,
        False,
    )
    first, second = workers.trained
    assert first == second
    assert (first.micro_batch, first.checkpointing, first.compute, first.heldout_path) == (2, True, "float32", None)
    assert learned.result.resumed_from == 1
    with open_device_store(member.home) as store:
        (record,) = [row for row in store.rounds() if row.round == 3]
        assert record.update_id == learned.update_id
        assert record.report["seed"] == learned.result.seed == first.seed
        assert not list(store.home.work.glob("round-3-*"))


@pytest.mark.slow
async def test_without_a_limit_nothing_is_planned(member: Member) -> None:
    workers = Notes()
    learned = await learnt(member, DeviceSettings(compute="float32"), 4, workers=workers)
    assert workers.planned == []
    assert (workers.trained[0].micro_batch, workers.trained[0].checkpointing) == (None, False)
    assert learned.norm > 0


@pytest.mark.slow
async def test_what_surely_fits_is_not_planned_and_takes_no_more_windows_than_may_be(member: Member) -> None:
    workers = Notes()
    with open_device_store(member.home) as store:
        charter = store.membership.charter
    most = most_memory_mb(member.base, charter, rank=4, micro_batch=1)
    await learnt(member, DeviceSettings(memory_mb=most, micro_batch=1, compute="float32"), 6, workers=workers)
    assert (workers.planned, workers.trained[0].micro_batch) == ([], 1)
    await learnt(member, DeviceSettings(micro_batch=99, compute="float32"), 7, workers=workers)
    assert workers.trained[1].micro_batch == charter.training.batch_size


async def test_what_may_not_fit_is_planned_within_the_machine_s_bounds(member: Member) -> None:
    workers = Notes(fits=False)
    with open_device_store(member.home) as store:
        most = most_memory_mb(member.base, store.membership.charter, rank=4, micro_batch=1)
    with pytest.raises(DoesNotFitError):
        await learnt(member, DeviceSettings(memory_mb=most - 1, micro_batch=1), 8, workers=workers)
    assert [(job.memory_mb, job.max_micro_batch) for job in workers.planned] == [(most - 1, 1)]


async def test_a_round_that_does_not_fit_says_so_and_is_not_planned_again(member: Member) -> None:
    workers = Notes(fits=False, peak_mb=500.0, instead=("Give it more memory.", "Use a smaller base."))
    for _ in range(2):
        with pytest.raises(DoesNotFitError, match=r"needs 500 MiB .* may take 400 MiB") as caught:
            await learnt(member, LIMITED, 5, workers=workers)
        assert caught.value.advice == "Give it more memory. Use a smaller base."
    assert len(workers.planned) == 1
    assert workers.trained == []
    with pytest.raises(DoesNotFitError):
        await learnt(member, DeviceSettings(memory_mb=300), 5, workers=workers)
    assert [job.memory_mb for job in workers.planned] == [400, 300]
