"""The compiled kernels of this installation: which build this processor can run, and loading it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BRAMBLE_NATIVE"
"""Environment variable that switches the kernels off with ``0``."""

VERSION = 1
"""Of the kernels that this code knows: what they are called, what they take, and the bits that they give."""

_FOLDER = Path(__file__).parent
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
_LEVELS = {"x86-64-v4": _V4, "x86-64-v3": _V3}  # in Linux's names, best first (psABI of x86-64, section 3.1.1)


def switched_off() -> bool:
    """Say whether the owner wants no kernels."""
    return os.environ.get(VARIABLE) == "0"


def builds_for(machine: str, flags: frozenset[str]) -> Sequence[str]:
    """Name the builds that a processor can run, best first.

    Args:
        machine: as ``platform.machine`` says it.
        flags: its features in Linux's names; only x86-64 has builds that depend on them.
    """
    known = machine.lower()
    if _MACHINES.get(known, known) != "x86_64":
        return ("generic",)
    return tuple(level for level, needed in _LEVELS.items() if needed <= flags)


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Give the features that processor and system have in common; none where Linux does not tell them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def open_build(path: Path) -> ctypes.CDLL | None:
    """Load one build; None where it is missing, does not load, or is of another version."""
    try:
        library = ctypes.CDLL(str(path))
        return library if library.bramble_version() == VERSION else None
    except (OSError, AttributeError):
        return None


def library() -> ctypes.CDLL | None:
    """Give the best build of this installation; None where there is none, or where it is switched off."""
    return None if switched_off() else _best()


@functools.cache
def _best() -> ctypes.CDLL | None:
    for name in builds_for(platform.machine(), processor_flags()):
        found = open_build(_FOLDER / f"kernels-{name}.so")
        if found is not None:
            return found
    return None
