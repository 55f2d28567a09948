from __future__ import annotations

import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from agent.device.llama_build import install_commands
from agent.device.profile import LlamaBuild, Profile
from agent.device.profile_files import load_profiles

BUILD = LlamaBuild(
    cmake=["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=87;53"], jobs=2, wheels="https://example.org/whl/cu124"
)


def test_the_command_compiles_the_version_that_the_project_pins() -> None:
    pinned = next(
        line
        for line in tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
        if line.startswith("llama-cpp-python")
    )
    command = install_commands(BUILD, system="linux").compile
    assert command.endswith(f"--no-binary llama-cpp-python {pinned}")
    assert shlex.split(command)[:2] == [
        "CMAKE_ARGS=-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87;53",
        "CMAKE_BUILD_PARALLEL_LEVEL=2",
    ]


def test_a_shell_hands_the_options_over_as_they_are() -> None:
    command = install_commands(BUILD, system="linux").compile.replace("python -m pip", "printenv CMAKE_ARGS #", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87;53\n"


def test_windows_sets_variables_its_own_way() -> None:
    assert install_commands(BUILD, system="windows").compile.startswith('$env:CMAKE_ARGS = "-DGGML_CUDA=ON ')


def test_a_wheel_that_is_built_already_is_offered_where_there_is_an_index() -> None:
    assert "--extra-index-url https://example.org/whl/cu124" in str(install_commands(BUILD, system="linux").wheel)
    assert install_commands(LlamaBuild(), system="linux").wheel is None


@pytest.mark.parametrize("profile", load_profiles(), ids=lambda profile: profile.name)
def test_every_profile_gives_a_command_that_a_shell_can_read(profile: Profile) -> None:
    command = install_commands(profile.llama, system="linux").compile
    assert shlex.split(command)[0].startswith("CMAKE_ARGS=-DGGML_")
