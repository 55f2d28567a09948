from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))  # the synthetic workers are the fleet's too

from tests.hub.world import World, make_world


@pytest.fixture
async def world(tmp_path: Path, tiny_q8: Path) -> World:
    """A community in memory whose rounds are full with one update."""
    return make_world(tmp_path / "hub", tiny_q8)
