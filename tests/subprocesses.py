"""Looks at what a fresh interpreter does."""

from __future__ import annotations

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    """Give the names of the modules that are loaded in a fresh interpreter after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
