"""How much memory a process uses."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

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
