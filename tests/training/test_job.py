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


def test_training_brings_no_compiler_into_its_worker(make_job: Callable[..., TrainJob], tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(make_job(steps=1, checkpointing=True).model_dump_json())
    code = (
        "from pathlib import Path\n"
        "from agent.training.job import TrainJob\n"
        "from agent.training.leaving import Leaving\n"
        "from agent.training.trainer import train\n"
        f"job = TrainJob.model_validate_json(Path({str(path)!r}).read_text())\n"
        "train(job, lambda _: None, Leaving())"
    )
    found = modules_after(code)
    assert "torch" in found
    assert found & {"torch._dynamo", "sympy", "transformers", "peft"} == set(), "a second, and 70 MB"
