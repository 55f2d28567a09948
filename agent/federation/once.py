"""Work that is done once: its result is kept beside what it made, and taken from there the next time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent.paths import write_atomically
from agent.training.job import Job

R = TypeVar("R", bound=BaseModel)

_NOT_WHAT_IS_DONE = {"threads", "max_memory_mb", "max_micro_batch"}
"""How a job is done, or what bounded a plan that was made: neither makes another result than the one that is kept."""


async def once(path: Path, job: Job, kind: type[R], work: Callable[[], Awaitable[R]]) -> R:
    """Give the result of a job that was done before, or do it and keep the result.

    Args:
        path: where the result is kept; its directory exists.
        job: what is done: another job's result is none of this one's, however many threads either has.
        kind: of the result.
        work: does it.

    Raises:
        DiskFullError: there was no room for the result.
    """
    asked = job.model_dump(mode="json", exclude=_NOT_WHAT_IS_DONE)
    known = _read(path, asked, kind)
    if known is not None:
        return known
    result = await work()
    write_atomically(path, json.dumps({"job": asked, "result": result.model_dump(mode="json")}).encode())
    return result


def _read(path: Path, asked: object, kind: type[R]) -> R | None:
    try:
        kept = json.loads(path.read_bytes())
        return kind.model_validate(kept["result"]) if kept["job"] == asked else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
