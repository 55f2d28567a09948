"""What travels in the wheel: everything that `bramble demo` needs in a place with no checkout around it."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent.llm.seedling import SEEDLING_PATH

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
_BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that pip would call, without a network."""
    pytest.importorskip("hatchling", reason="the wheel's build backend is not installed: pip install hatchling")
    directory = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(directory)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.split()[-1]


def test_wheel_carries_the_seedling_the_profiles_and_the_typing_mark(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        seedling = archive.read("agent/llm/seedling/seedling-q8_0.gguf")
    profiles = {f"agent/device/firmware_profiles/{path.name}" for path in (ROOT / "firmware_profiles").glob("*.toml")}
    assert seedling == SEEDLING_PATH.read_bytes()
    assert len(seedling) <= 5_000_000
    assert profiles
    assert profiles <= names
    assert "agent/py.typed" in names


def test_wheel_carries_every_module_of_the_package_and_nothing_beside_it(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "agent").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert modules <= names
    assert {name.split("/")[0] for name in names} == {"agent", next(n for n in names if "dist-info" in n).split("/")[0]}
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_names_the_command_and_what_others_plug_into(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(info).decode())
        metadata = archive.read(info.replace("entry_points.txt", "METADATA")).decode()
    assert entries["console_scripts"]["bramble"] == "agent.cli:main"
    assert "stack" in entries["bramble.merge_rules"]
    assert "files" in entries["bramble.sources"]
    assert "Name: bramble-agent" in metadata
    assert "License-Expression: Apache-2.0" in metadata
