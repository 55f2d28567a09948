"""Workers that are killed at any moment: their successors end with the adapter of an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.training.checkpoint import FILE_NAME, fingerprint, load_checkpoint
from agent.training.job import EVENT, Event, ProgressEvent, ResultEvent, TrainJob, TrainResult
from agent.training.leaving import Leaving
from agent.training.trainer import train
from tests.models import windows
from tests.training.fork_server import PLACES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked here")

KILLS = 20
MakeJob = Callable[..., TrainJob]


class Worker:
    """A worker process that has begun, and its events."""

    def __init__(self, pid: int, events: int) -> None:
        self.pid = pid
        self._events = events
        self._rest = b""

    def event(self, seconds: float | None = None) -> Event | None:
        """Wait for the next event; None once the worker has ended, or after some seconds."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._events], [], [], seconds)
            found = os.read(self._events, 65_536) if ready else b""
            if not found:
                return None
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\n")
        return EVENT.validate_json(line)

    def rest(self) -> list[Event]:
        """Give all events to its end."""
        return list(iter(self.event, None))

    def kill(self) -> None:
        """Kill it now, whatever it does; it may have ended by itself."""
        os.kill(self.pid, signal.SIGKILL)  # nobody waits for it before the server is asked, so the number is its own


class Workshop:
    """Starts one worker after another, each in a moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: Worker | None = None
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
        )

    def start(self, job: TrainJob, moment: str = "never") -> Worker:
        """Start a worker, which kills itself at a moment of :data:`~tests.training.fork_server.PLACES`."""
        path, events = self._folder / "job.json", self._folder / "events"
        path.write_text(job.model_dump_json())
        events.unlink(missing_ok=True)
        os.mkfifo(events)
        assert self._server.stdin is not None
        self._server.stdin.write(f"{path}\t{events}\t{moment}\n")
        self._server.stdin.flush()
        pid = int(self._line())
        self._running = Worker(pid, os.open(events, os.O_RDONLY))
        return self._running

    def ended(self, worker: Worker) -> int:
        """Wait for the end of a worker, and give its exit status, or the signal that ended it below zero."""
        status = int(self._line())
        os.close(worker._events)
        self._running = None
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the server, and what a failed test left behind."""
        if self._running is not None:
            self._running.kill()
        self._server.communicate()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.close()


@pytest.fixture
def make(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    """Make jobs of several passes a step, with looks at held-out windows."""
    heldout = windows(tmp_path / "heldout.npz", count=3, length=32, seed=0)

    def make(**changes: Any) -> TrainJob:
        given = {
            "micro_batch": 1,
            "checkpoint_seconds": 0.0,
            "heldout_path": heldout,
            "evaluate_every": 2,
            "patience": 1000,
        }
        return make_job(**(given | changes))

    return make


def uninterrupted(job: TrainJob, folder: Path) -> TrainResult:
    """Do the whole job at once, in this process."""
    elsewhere = {"checkpoint_dir": folder / "whole", "out_dir": folder / "whole", "checkpoint_seconds": 1000.0}
    return train(job.model_copy(update=elsewhere), lambda _: None, Leaving())


def finish(workshop: Workshop, job: TrainJob) -> TrainResult:
    """Let a last worker do what is left."""
    worker = workshop.start(job)
    last = worker.rest()[-1]
    assert workshop.ended(worker) == 0
    assert isinstance(last, ResultEvent)
    assert isinstance(last.result, TrainResult)
    return last.result


def assert_same(found: TrainResult, expected: TrainResult) -> None:
    assert found.adapter_sha256 == expected.adapter_sha256
    assert found.adapter_path.read_bytes() == expected.adapter_path.read_bytes()
    assert found.gguf_path.read_bytes() == expected.gguf_path.read_bytes()
    assert (found.losses, found.heldout, found.tokens) == (expected.losses, expected.heldout, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seed"),
    [({}, 1), ({"last_layers": 1, "trunk_cache": True, "compute": "bfloat16"}, 2)],
    ids=["every layer", "trunk cache"],
)
def test_a_worker_killed_twenty_times_at_random_ends_with_the_same_adapter(
    workshop: Workshop, make: MakeJob, tmp_path: Path, changes: dict[str, Any], seed: int
) -> None:
    path = windows(tmp_path / "many.npz", count=60, length=32)
    job = make(windows_path=path, steps=60, batch_size=3, **changes)
    whole = uninterrupted(job, tmp_path)
    rng = random.Random(seed)
    phases: Counter[str] = Counter()
    inside = 0
    for kills in range(3 * KILLS):
        if kills >= KILLS and inside:
            break  # on a busy machine all of them may have hit other places so far
        worker = workshop.start(job.model_copy(update={"checkpoint_seconds": rng.choice([0.0, 0.0, 0.03])}))
        began = time.monotonic()
        phase = worker.event()
        assert isinstance(phase, ProgressEvent)
        for _ in range(rng.randrange(4 if changes else 3)):
            following = worker.event()
            assert isinstance(following, ProgressEvent), following
            phase = following
        moment = time.monotonic() + rng.uniform(0, min(0.2, time.monotonic() - began))
        while (left := moment - time.monotonic()) > 0 and (following := worker.event(left)) is not None:
            assert isinstance(following, ProgressEvent), "there is so much to do that nobody comes to the end"
            phase = following
        worker.kill()
        worker.rest()
        assert workshop.ended(worker) == -signal.SIGKILL
        phases[phase.phase] += 1
        found = load_checkpoint(job.checkpoint_dir, fingerprint(job))
        inside += found is not None and 0 < found[0].windows < job.batch_size
    result = finish(workshop, job)
    assert_same(result, whole)
    assert result.resumed_from > 0
    assert inside > 0, "some died in the middle of a step, with some of its passes done"
    assert phases["trunk" if changes else "train"] > 0


MOMENTS = [
    *(("rename", number) for number in (1, 2, 5, 11)),
    *(("fsync", number) for number in (1, 2, 3, 14, 21)),
    *(("checkpoint", number) for number in (1, 3, 8)),
    *(("use", number) for number in (1, 5, 30, 77, 150, 300)),
    *(("look", number) for number in (1, 2, 3)),
]
"""For each place, the so manieth time that somebody comes by: the same worker is killed at all of them, in turn."""


@pytest.mark.slow
def test_a_worker_killed_where_it_hurts_ends_with_the_same_adapter(
    workshop: Workshop, make: MakeJob, tmp_path: Path
) -> None:
    job = make(steps=12)
    whole = uninterrupted(job, tmp_path)
    killed: Counter[str] = Counter()
    for place, number in random.Random(3).sample(MOMENTS, len(MOMENTS)):
        worker = workshop.start(job, f"{place}:{number}")
        worker.rest()
        status = workshop.ended(worker)
        assert status in {-signal.SIGKILL, 0}
        killed[place] += status != 0
    assert all(killed[place] for place in ("rename", "fsync", "checkpoint", "use", "look")), killed
    result = finish(workshop, job)
    assert_same(result, whole)
    assert not [path for path in job.out_dir.iterdir() if path.name.startswith(".adapter.safetensors")]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["trunk note", "fsync", "rename", "use"])
def test_a_worker_killed_while_it_fills_the_trunk_goes_on_with_it(
    workshop: Workshop, make: MakeJob, tmp_path: Path, place: str
) -> None:
    job = make(steps=2, last_layers=1, trunk_cache=True)
    whole = uninterrupted(job, tmp_path)
    for number in (1, 2, 3):
        worker = workshop.start(job, f"{place}:{number}")
        events = worker.rest()
        assert workshop.ended(worker) == -signal.SIGKILL
        assert {event.phase for event in events if isinstance(event, ProgressEvent)} <= {"load", "trunk"}
    assert not (job.checkpoint_dir / FILE_NAME).exists()
    assert_same(finish(workshop, job), whole)


def test_every_place_is_one_that_the_engine_has() -> None:
    assert all(callable(getattr(owner, name)) for owner, name in PLACES.values())
