from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from agent.errors import AdapterError
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.answering import Sampling
from agent.llm.gguf_file import open_gguf
from agent.llm.loaded_base import AdapterHandle, LoadedBase
from agent.serving.catalogue import AdapterFile, look_at
from agent.serving.engine import Ended, Engine, Failed, Heard, Job, Piece
from agent.serving.loaded_adapters import LoadedAdapters
from agent.serving.refusals import RequestRefusedError
from tests.models import random_adapter

PATIENCE = 20.0


@pytest.fixture
def engine(tiny_q8: Path) -> Iterator[Engine]:
    with Engine(base=tiny_q8, slots=2, waiting=1, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def files(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterFile]:
    base = open_gguf(tiny_q8)
    directory = tmp_path_factory.mktemp("adapters")
    for seed in range(4):
        adapter = random_adapter(base, rank=4, alpha=8.0, names=["q_proj", "down_proj"], seed=seed)
        write_gguf_adapter(adapter, base, directory / f"{seed}.gguf")
    return [look_at(directory / f"{seed}.gguf") for seed in range(4)]


def prompt_of(seed: int, length: int = 20) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 300, length)]


@dataclass
class Ear:
    """Hears one job, and can hold the engine up while it does."""

    news: queue.Queue[Heard] = field(default_factory=queue.Queue)
    go_on: threading.Event = field(default_factory=threading.Event)
    on_piece: Callable[[], None] = lambda: None

    def __call__(self, heard: Heard) -> None:
        self.news.put(heard)
        if isinstance(heard, Piece):
            self.on_piece()

    def all(self) -> tuple[str, Ended]:
        """Everything to the end."""
        text = ""
        while True:
            heard = self.news.get(timeout=PATIENCE)
            if isinstance(heard, Piece):
                text += heard.text
            else:
                assert isinstance(heard, Ended), heard
                return text, heard

    def failure(self) -> Exception:
        while True:
            heard = self.news.get(timeout=PATIENCE)
            if isinstance(heard, Failed):
                return heard.error
            assert isinstance(heard, Piece)


def job(ear: Ear, seed: int = 0, *adapters: AdapterFile, tokens: int = 12, prompt: list[int] | None = None) -> Job:
    return Job(
        prompt=prompt or prompt_of(seed),
        adapters=adapters,
        max_tokens=tokens,
        sampling=Sampling(),
        stop=(),
        deliver=ear,
    )


def ask(engine: Engine, seed: int, *adapters: AdapterFile, prompt: list[int] | None = None) -> tuple[str, Ended]:
    ear = Ear()
    engine.submit(job(ear, seed, *adapters, prompt=prompt))
    return ear.all()


def test_slots_take_turns_and_answer_as_they_would_alone(engine: Engine, files: list[AdapterFile]) -> None:
    alone = [ask(engine, seed, files[seed])[0] for seed in range(2)]
    order: list[int] = []
    ears = [Ear(on_piece=lambda index=index: order.append(index)) for index in range(2)]  # type: ignore[misc]
    for seed, ear in enumerate(ears):
        engine.submit(job(ear, seed, files[seed]))
    assert [ear.all()[0] for ear in ears] == alone
    assert max(order[:8].count(0), order[:8].count(1)) < 8  # neither has to wait for the end of the other


def test_more_than_slots_and_queue_are_refused_until_one_leaves(engine: Engine) -> None:
    held = threading.Event()
    holding = Ear(on_piece=lambda: held.wait(PATIENCE) and None)
    first = job(holding)
    engine.submit(first)
    assert isinstance(holding.news.get(timeout=PATIENCE), Piece)  # the engine's thread is in our hands now
    second, third, fourth = Ear(), Ear(), Ear()
    waiting = job(third)
    engine.submit(job(second))
    engine.submit(waiting)
    with pytest.raises(RequestRefusedError) as full:
        engine.submit(job(fourth))
    assert (full.value.status, full.value.reason) == (503, "queue_full")
    assert full.value.headers["retry-after"]
    waiting.cancel()
    engine.submit(job(fourth))
    held.set()
    texts = {ear.all()[0] for ear in (second, fourth)}
    assert len(texts) == 1
    assert third.news.empty()


def test_cancelled_job_says_nothing_more_and_frees_its_slot(engine: Engine) -> None:
    ear = Ear()
    endless = job(ear, tokens=400)
    ear.on_piece = endless.cancel
    engine.submit(endless)
    assert isinstance(ear.news.get(timeout=PATIENCE), Piece)
    for _ in range(2):
        ask(engine, 1)
    assert ear.news.empty()


def test_next_question_reads_only_what_is_new_and_gets_the_answer_it_would_get_anyway(
    tiny_q8: Path, engine: Engine, files: list[AdapterFile]
) -> None:
    begin = prompt_of(0, 200)
    longer = [*begin, *prompt_of(1, 90)]
    ask(engine, 0, files[0], prompt=begin)
    ask(engine, 0, files[1], prompt=begin)
    text, ended = ask(engine, 0, files[0], prompt=longer)
    assert ended.usage.reused == 128
    with Engine(base=tiny_q8, slots=1, threads=1) as fresh:
        assert ask(fresh, 0, files[0], prompt=longer)[0] == text
    _, ended = ask(engine, 0, prompt=longer)
    assert ended.usage.reused == 0


def test_adapter_that_cannot_be_loaded_fails_its_own_request_alone(
    engine: Engine, files: list[AdapterFile], tmp_path: Path
) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"no adapter")
    before = ask(engine, 0, files[0])[0]
    gone = AdapterFile(tmp_path / "gone.gguf", 0, 0)
    replaced = AdapterFile(files[0].path, files[0].changed - 1, files[0].size)
    for bad in (look_at(path), gone, replaced):
        ear = Ear()
        engine.submit(job(ear, 0, files[0], bad))
        assert isinstance(ear.failure(), AdapterError)
        assert ask(engine, 0, files[0])[0] == before


def test_stopping_fails_what_waits_then_what_is_being_answered(tiny_q8: Path) -> None:
    held = threading.Event()
    with Engine(base=tiny_q8, slots=1, waiting=4, threads=1) as engine:
        going, waiting = Ear(on_piece=lambda: held.wait(PATIENCE) and None), Ear()
        engine.submit(job(going, tokens=400))
        assert isinstance(going.news.get(timeout=PATIENCE), Piece)
        engine.submit(job(waiting))
        engine.refuse_waiting()
        assert "stopping" in str(waiting.failure())
        with pytest.raises(RequestRefusedError, match="stopping"):
            engine.submit(job(Ear()))
        assert going.news.empty()
        engine.stop()
        assert "stopping" in str(going.failure())
        held.set()


def test_prompts_are_checked_before_they_wait(engine: Engine) -> None:
    assert engine.n_ctx == 512
    assert engine.tokens((5, 6)) == [5, 6]
    with pytest.raises(RequestRefusedError) as long:
        engine.tokens(tuple([5] * 512))
    assert long.value.reason == "context_length_exceeded"
    with pytest.raises(RequestRefusedError, match="320"):
        engine.tokens((5, 320))


def test_adapters_used_last_stay_and_a_busy_one_is_never_unloaded(tiny_q8: Path, files: list[AdapterFile]) -> None:
    let_go: list[AdapterHandle] = []
    with LoadedBase(path=tiny_q8) as base:
        loaded = LoadedAdapters(base=base, let_go=let_go.append, kept=2)
        handles = [loaded.take(file) for file in files[:3]]
        assert loaded.take(files[0]) is handles[0]
        loaded.tidy({files[1]})
        assert let_go == [handles[2]]
        assert len(loaded) == 2
        assert loaded.take(files[1]) is handles[1]
        loaded.take(files[2])
        loaded.tidy(files)
        assert len(loaded) == 3
        loaded.tidy(())
        assert let_go == [handles[2], handles[0]]


def test_engine_goes_round_more_adapters_than_it_keeps(tiny_q8: Path, files: list[AdapterFile]) -> None:
    with Engine(base=tiny_q8, slots=2, threads=1) as engine:
        engine._loaded._kept = 1
        first = [ask(engine, 0, file)[0] for file in files]
        assert [ask(engine, 0, file)[0] for file in files] == first
        assert len(set(first)) > 1
        assert len(engine._loaded) == 1


def test_passes_and_layers_are_as_asked(tiny_q8: Path) -> None:
    with Engine(base=tiny_q8, n_ctx=64, slots=1, threads=1, batch=32, gpu_layers=7) as engine:
        (slot,) = engine._slots
        assert (slot.context._n_batch, slot.context.n_ctx, engine._base._gpu_layers) == (32, 64, 7)
