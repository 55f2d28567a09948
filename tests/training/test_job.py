from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.training.job import (
    EVENT,
    JOB,
    EvaluateJob,
    EvaluateResult,
    PausedEvent,
    PrepareJob,
    ProgressEvent,
    ResultEvent,
    TrainJob,
    Variant,
)
from tests.subprocesses import modules_after


def test_jobs_and_events_come_back_from_json(make_job: Callable[..., TrainJob]) -> None:
    jobs = [
        make_job(),
        PrepareJob(base_path=Path("b"), sources=(Path("s"),), out_dir=Path("o")),
        EvaluateJob(base_path=Path("b"), windows_path=Path("w"), variants=(Variant(name="base"),)),
    ]
    for job in jobs:
        assert JOB.validate_json(job.model_dump_json()) == job
    result = EvaluateResult(losses={"base": 1.5, "worse": float("inf")}, targets=3, seconds=0.1, peak_rss_mb=9.0)
    for event in (ProgressEvent(phase="train", step=1), PausedEvent(step=3), ResultEvent(result=result)):
        assert EVENT.validate_json(event.model_dump_json()) == event


def test_a_job_that_makes_no_sense_is_refused(make_job: Callable[..., TrainJob]) -> None:
    for changes in ({"steps": 0}, {"rank": 1000}, {"base_sha256": "abc"}, {"learning_rate": -1.0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            make_job(**changes)


def test_neither_jobs_nor_the_parents_side_import_anything_heavy() -> None:
    found = modules_after("import agent.training.process, agent.training.job, agent.llm.gguf_file, agent.llm.adapter")
    assert not found & {"torch", "transformers", "peft", "llama_cpp"}
    assert sys.modules  # this process is another one
