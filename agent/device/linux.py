"""What a Linux system says about its machine, read from files under a root so that recordings can stand in for it.

A file that is missing, empty or unreadable says nothing; that is normal in containers and virtual machines.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

CHASSIS = {
    **dict.fromkeys((3, 4, 5, 6, 7, 13, 15, 16, 24, 35, 36), "desktop"),
    **dict.fromkeys((8, 9, 10, 14, 31, 32), "laptop"),
    **dict.fromkeys((17, 22, 23, 25, 28, 29), "server"),
    **dict.fromkeys((11, 30), "tablet"),
    **dict.fromkeys((33, 34), "embedded"),
}
"""Kinds of chassis by their SMBIOS number (DSP0134 3.7, section 7.4.1); others are unknown."""

_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
}
"""Names of Arm's cores by part number, as in ``MIDR_EL1``."""

_GPU_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_FILE_LIMIT = 256 * 1024


def read_text(root: Path, name: str) -> str:
    """Give a file's text without the zero byte that ends device-tree strings, or nothing."""
    return _read(root, name).replace(b"\0", b"").decode("utf-8", "replace").strip()


def _read(root: Path, name: str) -> bytes:
    try:
        with (root / name).open("rb") as file:
            return file.read(_FILE_LIMIT)
    except OSError:
        return b""


def cpu_model(root: Path) -> str:
    """Give the processor's name from ``/proc/cpuinfo``; for Arm the cores' names, joined where there are several."""
    text = read_text(root, "proc/cpuinfo")
    named = re.search(r"^(?:model name|Model Name|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    if named:
        return re.sub(r"\s+", " ", named[1]).strip()
    parts = {int(part, 16) for part in re.findall(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)$", text, re.MULTILINE)}
    return " + ".join(sorted(_ARM_PARTS.get(part, f"Arm part {part:#x}") for part in parts))


def cpu_features(root: Path) -> frozenset[str]:
    """Give the processor's feature flags in the kernel's own names: ``avx2``, ``asimd``, ``bf16``."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", read_text(root, "proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def physical_cores(root: Path) -> int | None:
    """Count distinct cores in ``/proc/cpuinfo``, where it tells cores from threads."""
    text = read_text(root, "proc/cpuinfo")
    pairs = set()
    for block in text.split("\n\n"):
        package = re.search(r"^physical id\s*:\s*(\d+)$", block, re.MULTILINE)
        core = re.search(r"^core id\s*:\s*(\d+)$", block, re.MULTILINE)
        if core:
            pairs.add((package[1] if package else "0", core[1]))
    return len(pairs) or None


def board(root: Path) -> str:
    """Give the device tree's model, such as ``Raspberry Pi 5 Model B Rev 1.0``."""
    places = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")
    return next((text for text in (read_text(root, place) for place in places) if text), "")


def compatible(root: Path) -> tuple[str, ...]:
    """Give the device tree's ``compatible`` strings, the most specific first (Devicetree Specification 0.4, 2.3.1)."""
    for place in ("proc/device-tree/compatible", "sys/firmware/devicetree/base/compatible"):
        found = tuple(part for part in _read(root, place).decode("utf-8", "replace").split("\0") if part.strip())
        if found:
            return found
    return ()


def dmi(root: Path, field: str) -> str:
    """Give a DMI field such as ``sys_vendor``, unless it is one of the placeholders that makers leave in."""
    text = read_text(root, f"sys/class/dmi/id/{field}")
    return "" if re.fullmatch(r"(?i)to be filled.*|default string|system .*|not .*|none|o\.e\.m\.|n/a", text) else text


def chassis(root: Path) -> str:
    """Give the kind of chassis by DMI; ``unknown`` where it does not say."""
    text = read_text(root, "sys/class/dmi/id/chassis_type")
    return CHASSIS.get(int(text) & 0x7F, "unknown") if text.isdecimal() else "unknown"


def has_battery(root: Path) -> bool:
    """Tell whether a battery powers the machine (one of a mouse or keyboard does not)."""
    supplies = root / "sys/class/power_supply"
    try:
        names = sorted(path.name for path in supplies.iterdir())
    except OSError:
        return False
    return any(
        read_text(supplies, f"{name}/type") == "Battery" and read_text(supplies, f"{name}/scope") != "Device"
        for name in names
    )


def gpus(root: Path) -> tuple[str, ...]:
    """Give the makers of the graphics processors, sorted: ``amd``, ``intel``, ``nvidia``."""
    found = set()
    try:
        cards = sorted(path.name for path in (root / "sys/class/drm").iterdir())
    except OSError:
        cards = []
    for card in cards:
        if re.fullmatch(r"card\d+", card):
            found.add(_GPU_VENDORS.get(read_text(root, f"sys/class/drm/{card}/device/vendor"), ""))
    if read_text(root, "proc/driver/nvidia/version") or "tegra" in read_text(root, "proc/device-tree/compatible"):
        found.add("nvidia")
    return tuple(sorted(found - {""}))


def core_quota(root: Path) -> int | None:
    """Give how many cores the control group allows, rounded up (cgroup v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``)."""
    quota, _, period = read_text(root, "sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = read_text(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read_text(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal() and int(period) > 0 and int(quota) > 0:
        return max(1, math.ceil(int(quota) / int(period)))
    return None


def memory_limit(root: Path) -> int | None:
    """Give the bytes that the control group allows (v2 ``memory.max``, v1 ``memory.limit_in_bytes``)."""
    for place in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = read_text(root, place)
        if text.isdecimal() and 0 < int(text) < 1 << 60:
            return int(text)
    return None
