"""Threads that share work: every part is done once, and what a part raises is raised."""

from __future__ import annotations

import functools
import threading

import pytest

from agent.training.crew import Crew


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_part_is_done_once(threads: int, count: int) -> None:
    crew = Crew(threads)
    for _ in range(20):
        done: list[int] = []
        crew.do([functools.partial(done.append, number) for number in range(count)])
        assert sorted(done) == list(range(count))


def test_parts_are_done_at_the_same_time() -> None:
    together = threading.Barrier(2)
    Crew(2).do([functools.partial(_meet, together), functools.partial(_meet, together)])
    assert not together.broken


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_part_raises_is_raised_when_no_other_is_being_done(threads: int) -> None:
    begun, ended = threading.Event(), threading.Event()

    def fail() -> None:
        begun.wait(10)
        raise ValueError("a part of it")

    def finish() -> None:
        begun.set()
        threading.Event().wait(0.05)
        ended.set()

    crew = Crew(threads)
    with pytest.raises(ValueError, match="a part of it"):
        crew.do([finish, fail] if threads == 1 else [fail, finish])
    assert ended.is_set()
    crew.do([functools.partial(ended.clear)])  # it can be used again
    assert not ended.is_set()


def _meet(together: threading.Barrier) -> None:
    together.wait(10)
