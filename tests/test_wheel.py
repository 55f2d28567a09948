"""What travels in the wheel: everything that `bramble demo` needs in a place with no checkout around it."""

from __future__ import annotations

import configparser
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent.llm.seedling import SEEDLING_PATH
from agent.native.library import builds_for, open_build, processor_flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
_BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that pip would call, without a network."""
    return build(tmp_path_factory.mktemp("dist"))[0]


def build(directory: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel, and give what was said meanwhile."""
    pytest.importorskip("hatchling", reason="the wheel's build backend is not installed: pip install hatchling")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(directory)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.split()[-1], done.stdout + done.stderr


def test_wheel_carries_the_seedling_the_profiles_and_the_typing_mark(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        seedling = archive.read("agent/llm/seedling/seedling-q8_0.gguf")
    profiles = {f"agent/device/firmware_profiles/{path.name}" for path in (ROOT / "firmware_profiles").glob("*.toml")}
    assert seedling == SEEDLING_PATH.read_bytes()
    assert len(seedling) <= 5_000_000
    assert profiles
    assert profiles <= names
    assert {
        f"agent/hub/packaging/{path.relative_to(ROOT / 'packaging')}" for path in ROOT.glob("packaging/*/*")
    } <= names
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


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no compiler for C")
def test_wheel_carries_kernels_that_this_machine_can_load(wheel: Path, tmp_path: Path) -> None:
    builds = builds_for(platform.machine(), processor_flags())
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(f"agent/native/kernels-{builds[0]}.so", tmp_path)
    assert open_build(Path(path)) is not None
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


@pytest.mark.parametrize(("setting", "says"), [({"CC": "/nonexistent/cc"}, True), ({"BRAMBLE_NATIVE": "0"}, False)])
def test_wheel_without_kernels_is_made_where_they_cannot_or_shall_not_be_compiled(
    tmp_path: Path, setting: dict[str, str], *, says: bool
) -> None:
    made, said = build(tmp_path, **setting)
    with zipfile.ZipFile(made) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    assert made.name.endswith("-py3-none-any.whl")
    assert ("Bramble works without them" in said) is says


def test_wheel_carries_a_bill_of_materials_where_one_is_named(tmp_path: Path) -> None:
    bill = tmp_path / "bramble-agent.cdx.json"
    bill.write_text("{}")
    made, _said = build(tmp_path, BRAMBLE_NATIVE="0", BRAMBLE_SBOM=str(bill))
    with zipfile.ZipFile(made) as archive:
        assert [name.split("/", 1)[1] for name in archive.namelist() if "/sboms/" in name] == [f"sboms/{bill.name}"]
