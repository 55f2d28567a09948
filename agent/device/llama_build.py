"""The commands that install llama-cpp-python as a profile says: compiled for this processor, or built already."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from agent.device.profile import LlamaBuild

PACKAGE = "llama-cpp-python"


@dataclass(frozen=True, slots=True)
class InstallCommands:
    """What to type.

    Attributes:
        compile: compiles llama.cpp here.
        wheel: takes a wheel that is built already, where there is one; None where the profile knows no index.
    """

    compile: str
    wheel: str | None


def install_commands(build: LlamaBuild, *, system: str) -> InstallCommands:
    """Give the commands for the very version that Bramble is tested with: the low-level API moves.

    CMake options go through ``CMAKE_ARGS`` (llama-cpp-python's README); ``CMAKE_BUILD_PARALLEL_LEVEL`` is CMake's own.

    Args:
        build: what the profile says.
        system: ``windows`` has another way to set a variable.
    """
    version = importlib.metadata.version(PACKAGE)
    variables = {"CMAKE_ARGS": " ".join(build.cmake)} if build.cmake else {}
    if build.jobs is not None:
        variables["CMAKE_BUILD_PARALLEL_LEVEL"] = str(build.jobs)
    pip = f"python -m pip install --force-reinstall --no-deps --no-cache-dir %s {PACKAGE}=={version}"
    if system == "windows":
        set_all = "".join(f'$env:{name} = "{value}"; ' for name, value in variables.items())
    else:
        set_all = "".join(f'{name}="{value}" ' for name, value in variables.items())
    return InstallCommands(
        compile=set_all + pip % f"--no-binary {PACKAGE}",
        wheel=pip % f"--only-binary {PACKAGE} --extra-index-url {build.wheels}" if build.wheels else None,
    )
