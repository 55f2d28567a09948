from pathlib import Path

import pytest

from tests.faults.community import tiny_base


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one small layer."""
    return tiny_base(tmp_path_factory.mktemp("one-layer"))
