"""The tables of docs/devices.md are what the profiles say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from agent.device.profile import Profile
from agent.device.profile_files import load_profiles, read_profile

DOC = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()


def plan_row(profile: Profile) -> str:
    plan, heat = profile.training, profile.governor.temperature
    cores = {"physical": "cores"}.get(str(plan.cores), str(plan.cores))
    threads = f"{cores} - {plan.spare_cores}" if plan.spare_cores else cores
    return (
        f"| `{profile.name}` | {profile.title} | {threads} | {plan.memory_share:.0%} | {plan.compute} |"
        f" {plan.max_rank} | {plan.window} | {plan.micro_batch} | {profile.runtime.context:,} |"
        f" {profile.runtime.gpu_layers} | {heat.stop:g}/{heat.resume:g} |"
    )


def base_row(profile: Profile) -> str:
    bases = "; ".join(
        f"{base.memory_mb_min:,} MiB: {base.model} {base.quantisation} ({base.training_mb:,})" for base in profile.bases
    )
    return f"| `{profile.name}` | {bases} |"


@pytest.mark.parametrize("profile", load_profiles(), ids=lambda profile: profile.name)
def test_the_tables_say_what_the_profile_says(profile: Profile) -> None:
    assert plan_row(profile) in DOC
    assert base_row(profile) in DOC


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL))
def test_the_examples_can_be_used(example: str, tmp_path: Path) -> None:
    name = tomllib.loads(example)["name"]
    path = tmp_path / f"{name}.toml"
    path.write_text(example)
    assert read_profile(path).extends
