"""The aggregators of ``byzfl``, an independent implementation by the authors of nearest-neighbour mixing.

They are two files that need NumPy, SciPy and torch. Importing the package itself would bring in its whole benchmark,
and with it torchvision and seaborn; so it is installed without these, and its first file is passed over.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

_WHY = "byzfl is not installed: pip install --no-deps byzfl==0.0.11"


def byzfl_module(name: str) -> ModuleType:
    """Give one of byzfl's modules of aggregators; skip the test where it is not installed."""
    if "byzfl" not in sys.modules:
        found = importlib.util.find_spec("byzfl")
        if found is None or found.submodule_search_locations is None:
            pytest.skip(_WHY)
        package = ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["byzfl"] = package
    pytest.importorskip("scipy", reason="byzfl computes distances with SciPy")
    return importlib.import_module(f"byzfl.aggregators.{name}")
