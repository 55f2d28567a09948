"""How much memory this process has taken at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Give the largest resident size so far, in MiB; 0 where the system does not say.

    On Linux ``getrusage`` would answer with the parent's size where that was larger (it survives ``exec``), so the
    high-water mark of this address space is read instead (proc_pid_status(5), ``VmHWM``).
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
