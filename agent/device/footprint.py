"""What a process uses, and what there is for it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil

from agent.device.linux import memory_limit

_MIB = 1024 * 1024


def resident_mb(pid: int) -> float | None:
    """Give the largest resident size of a process so far in MiB, or its present one where the system keeps no record.

    Returns:
        None where there is no such process any more.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found:
        return int(found[1]) / 1024
    try:
        return float(psutil.Process(pid).memory_info().rss) / _MIB
    except psutil.Error:
        return None


def present_mb() -> float:
    """Give the resident size of this process now, in MiB."""
    return float(psutil.Process().memory_info().rss) / _MIB


def available_mb() -> float:
    """Give how much memory this machine could hand out now, in MiB; less where this process is limited."""
    free = float(psutil.virtual_memory().available)
    limit = memory_limit(Path("/"))
    return (free if limit is None else min(free, limit - psutil.Process().memory_info().rss)) / _MIB


def free_disk_mb(path: Path) -> float:
    """Give the room on the disk of a path, in MiB."""
    return float(psutil.disk_usage(str(path)).free) / _MIB


def age_seconds() -> float:
    """Give how long ago this process was started."""
    return max(0.0, time.time() - psutil.Process().create_time())
