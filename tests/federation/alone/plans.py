"""A plan as the planner gives it."""

from __future__ import annotations

from typing import Any

from agent.training.job import PlanResult


def plan(**over: Any) -> PlanResult:
    """Give a plan of 12 steps with anything changed."""
    given: dict[str, Any] = {
        "windows": 32,
        "window": 64,
        "steps": 12,
        "epochs": 3.0,
        "tokens": 6144,
        "batch_size": 8,
        "micro_batch": 2,
        "accumulation": 4,
        "compute": "float32",
        "checkpointing": True,
        "trunk_cache": False,
        "parameters": 100,
        "seconds": 22.0,
        "step_seconds": 1.0,
        "tok_s": 500.0,
        "peak_mb": 300.0,
        "disk_mb": 3.0,
        "memory_mb": 400.0,
        "fits": True,
    }
    return PlanResult.model_validate(given | over)
