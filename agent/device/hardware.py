"""What machine this is, as far as training and inference care. Nothing here asks the network."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from agent.device import linux

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "armv8l": "aarch64"}
_NOTABLE = frozenset(
    {"avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"}
    | {"asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"}
)
_MIB = 1024 * 1024
_SYSCTL_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine.

    Attributes:
        system: ``linux``, ``darwin``, ``windows``, or what Python calls it.
        machine: ``x86_64``, ``aarch64``, or what the system calls it.
        cpu_model: the processor's name, or nothing.
        physical_cores: cores; on Apple silicon the performance cores alone, which is what pays (hw.perflevel0).
        logical_cores: hardware threads.
        usable_cores: hardware threads that this process may use: fewer in a container or under an affinity mask.
        features: instruction sets that matter for matrix products, in Linux's names.
        memory_bytes: memory that this process may use: less than the machine's in a container.
        board: the device tree's model, or nothing.
        compatible: what the device tree says that the machine is compatible with, the most specific first.
        vendor: the machine's maker, or nothing.
        product: the machine's name, or nothing.
        chassis: ``desktop``, ``laptop``, ``server``, ``tablet``, ``embedded`` or ``unknown``.
        battery: whether a battery powers it.
        gpus: makers of its graphics processors.
    """

    system: str
    machine: str
    cpu_model: str = ""
    physical_cores: int = 1
    logical_cores: int = 1
    usable_cores: int = 1
    features: frozenset[str] = frozenset()
    memory_bytes: int = 0
    board: str = ""
    compatible: tuple[str, ...] = ()
    vendor: str = ""
    product: str = ""
    chassis: str = "unknown"
    battery: bool = False
    gpus: tuple[str, ...] = ()

    @property
    def memory_mb(self) -> int:
        """Memory that this process may use, in MiB."""
        return self.memory_bytes // _MIB

    def to_dict(self) -> dict[str, object]:
        """Give it as plain values, for ``--json``."""
        lists = {"features": sorted(self.features), "gpus": list(self.gpus), "compatible": list(self.compatible)}
        return {**asdict(self), **lists}


def detect(*, root: Path = Path("/")) -> Hardware:
    """Look at this machine; what cannot be found out is left at its default.

    Args:
        root: where ``proc`` and ``sys`` are; a recording's folder in tests.
    """
    system = platform.system().lower()
    machine = platform.machine().lower()
    logical = psutil.cpu_count(logical=True) or 1
    found = Hardware(
        system=system,
        machine=_MACHINES.get(machine, machine),
        cpu_model=platform.processor(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable_cores=_allowed_cores(logical),
        memory_bytes=psutil.virtual_memory().total,
        battery=_battery(),
    )
    if system == "linux":
        return on_linux(found, root)
    return _on_mac(found) if system == "darwin" else _with_chassis(found)


def on_linux(found: Hardware, root: Path) -> Hardware:
    """Add what the files under a root say to what the interpreter knows."""
    quota, limit = linux.core_quota(root), linux.memory_limit(root)
    return _with_chassis(
        replace(
            found,
            cpu_model=linux.cpu_model(root) or found.cpu_model,
            physical_cores=linux.physical_cores(root) or found.physical_cores,
            usable_cores=min(found.usable_cores, quota or found.usable_cores),
            features=linux.cpu_features(root) & _NOTABLE,
            memory_bytes=min(found.memory_bytes, limit or found.memory_bytes),
            board=linux.board(root),
            compatible=linux.compatible(root),
            vendor=linux.dmi(root, "sys_vendor"),
            product=linux.dmi(root, "product_name"),
            chassis=linux.chassis(root),
            battery=linux.has_battery(root),
            gpus=linux.gpus(root),
        )
    )


def _on_mac(found: Hardware) -> Hardware:
    """Ask ``sysctl`` what the interpreter does not know."""
    model = _sysctl("hw.model")
    named = {"hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.avx2_0": "avx2"}
    features = {flag for key, flag in named.items() if _sysctl(key) == "1"}
    if found.machine == "aarch64":
        features.add("asimd")
    fast = _sysctl("hw.perflevel0.physicalcpu")
    return replace(
        found,
        physical_cores=int(fast) if fast.isdecimal() and int(fast) else found.physical_cores,
        cpu_model=_sysctl("machdep.cpu.brand_string") or found.cpu_model,
        features=frozenset(features),
        vendor="Apple",
        product=model,
        chassis="laptop" if "Book" in model or found.battery else "desktop",
        gpus=("apple",) if found.machine == "aarch64" else (),
    )


def _with_chassis(found: Hardware) -> Hardware:
    """Call a machine of unknown chassis a laptop if a battery powers it."""
    if found.chassis != "unknown" or not found.battery:
        return found
    return replace(found, chassis="laptop")


def _allowed_cores(logical: int) -> int:
    """Count the hardware threads that the scheduler lets this process use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else logical


def _battery() -> bool:
    """Ask psutil, which knows on some systems only."""
    try:
        return getattr(psutil, "sensors_battery", lambda: None)() is not None
    except (OSError, RuntimeError, NotImplementedError):
        return False


def _sysctl(key: str) -> str:
    """Give one of macOS's values, or nothing."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", key], capture_output=True, text=True, timeout=_SYSCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
