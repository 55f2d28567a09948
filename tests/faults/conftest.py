import os
from pathlib import Path

import pytest

from tests.faults.community import tiny_base

if os.name != "posix":  # they fork, kill, and limit what files may hold
    collect_ignore = ["test_actors.py", "test_runs.py", "test_invariants.py"]


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one small layer."""
    return tiny_base(tmp_path_factory.mktemp("one-layer"))
