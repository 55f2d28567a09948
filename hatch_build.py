"""Compiles the kernels in agent/native/source when the package is built; without a compiler it is built without them.

On x86-64 there is one library for each level of the instruction set, and the program chooses (agent/native/library.py).
All give the same bits, which is why products and sums are not contracted. ``CC`` names the compiler, and
``BRAMBLE_NATIVE=0`` leaves the kernels out. ``BRAMBLE_SBOM`` names a bill of materials to put into the wheel (PEP 770).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "agent/native"
LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4")
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")
PATIENCE = 300
"""Seconds for one library; a Raspberry Pi takes a few."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc] # hatchling has no types here
    """Called by hatchling for wheels and editable installs."""

    _scratch: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what is to be packed.

        Args:
            version: ``editable``, where the libraries go beside their sources, or ``standard``, where only the wheel
                gets them.
            build_data: hatchling's, of which the wheel's tag and files are changed.
        """
        bill = os.environ.get("BRAMBLE_SBOM")
        if bill and version != "editable":
            build_data["sbom_files"].append(bill)
        if os.environ.get("BRAMBLE_NATIVE") == "0" or sys.platform == "win32":
            return
        root = Path(self.root)
        if version != "editable":
            self._scratch = Path(tempfile.mkdtemp(prefix="bramble-kernels-"))
        target = self._scratch or root / FOLDER
        made = [library for level in _levels() if (library := self._compile(root / FOLDER / "source", target, level))]
        if not made or version == "editable":
            return
        build_data["force_include"].update({str(path): f"{FOLDER}/{path.name}" for path in made})
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what the wheel has now; arguments are hatchling's."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _compile(self, source: Path, target: Path, level: str) -> Path | None:
        """Make one library, whole or not at all: others may have the one before it loaded."""
        library = target / f"kernels-{level}.so"
        fresh = target / f".{library.name}.{os.getpid()}"
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
        machine = [] if level == "generic" else [f"-march={level}"]
        command = [*compiler, *FLAGS, *machine, "-o", str(fresh), *map(str, sorted(source.glob("*.c"))), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
            why = done.stderr.strip()[-500:] if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        if why:
            fresh.unlink(missing_ok=True)
            self.app.display_warning(
                f"The kernels for {level} could not be compiled ({why}). Bramble works without them, more slowly;"
                " install it again where there is a compiler for C."
            )
            return None
        fresh.replace(library)
        return library


def _levels() -> tuple[str, ...]:
    return LEVELS if platform.machine().lower() in {"x86_64", "amd64", "x64"} else ("generic",)
