from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.device import hardware as hardware_module
from agent.device import machine as machine_module
from agent.device.hardware import Hardware, on_linux
from agent.device.profile_files import schema_text
from agent.errors import SettingsError
from agent.paths import Home
from tests.device.recordings import RECORDINGS

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "device")


@pytest.fixture
def run(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on a Jetson Orin Nano of 8 GB."""
    recording = RECORDINGS["jetson orin nano"]
    known = Hardware(
        system="linux",
        machine="aarch64",
        physical_cores=6,
        logical_cores=6,
        usable_cores=6,
        memory_bytes=recording.memory_mb << 20,
    )
    jetson = on_linux(known, recording.write(tmp_path / "root"))
    for module in (machine_module, hardware_module):
        monkeypatch.setattr(module, "detect", lambda **_options: jetson)

    def command(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(cli, ["device", *map(str, arguments), "--home", str(home.root)])
        if result.exception is not None:
            raise result.exception
        return result

    return command


def test_a_machine_is_shown_with_its_profile_and_why(run: Run) -> None:
    shown = " ".join(run("show").stdout.split())
    for part in (
        "NVIDIA Jetson Orin Nano (jetson-orin-nano)",
        "the device tree is compatible with nvidia,p3768-0000+p3767-0005",
        "Qwen3-0.6B Q8_0",
        "training 5 threads",
        "every layer on the graphics processor",
        'CMAKE_ARGS="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87 ',
        "pauses at 85 °C until 72 °C; of tj-thermal, cpu-thermal, gpu-thermal",
        "jetson-orin-nano wins ✓ the instruction set is aarch64",
        "jetson-orin fits ✓",
        "x86-laptop no ✗ the instruction set is aarch64; wanted: x86_64",
    ):
        assert part in shown, part


def test_programs_get_the_same_as_json(run: Run) -> None:
    found = json.loads(run("show", "--json").stdout)
    assert found["profile"]["name"] == "jetson-orin-nano"
    assert found["path"].endswith("jetson-orin-nano.toml")
    assert found["training"]["threads"] == 5
    assert found["training"]["memory_mb"] == int(7620 * 0.4)
    assert found["answering"] == {"threads": 6, "context": 4096, "batch": 256, "gpu_layers": "all"}
    assert found["base"]["model"] == "Qwen3-0.6B"
    assert found["install"]["compile"].startswith("CMAKE_ARGS=")
    assert {one["name"]: one["expected"] for one in found["sensors"]}.items() >= {"heat": True, "disk": False}.items()
    assert found["governor"]["temperature"]["zones"] == ["tj-thermal", "cpu-thermal", "gpu-thermal"]
    (won,) = [verdict for verdict in found["verdicts"] if verdict["won"]]
    assert [(rule["rule"], rule["held"]) for rule in won["rules"]] == [("machine", True), ("compatible", True)]
    assert found["hardware"]["compatible"][-1] == "nvidia,tegra234"


@pytest.mark.skipif(Path("/sys/class/thermal/thermal_zone0").exists(), reason="this machine has thermal zones")
def test_a_sensor_that_should_be_there_and_is_silent_is_pointed_at(run: Run) -> None:
    shown = " ".join(run("show").stdout.split())
    assert "expected here! no temperature sensor is called tj-thermal or cpu-thermal or gpu-thermal" in shown


def test_three_lines_of_the_owner_s_make_a_profile_that_wins(run: Run, home: Home) -> None:
    home.profiles.mkdir(parents=True)
    path = home.profiles / "robot.toml"
    path.write_text('name = "robot"\nextends = "jetson-orin-nano"\ntraining.cores = 2\n')
    assert "would be its profile" in run("profile", "check", path).stdout
    assert json.loads(run("show", "--json").stdout)["training"]["threads"] == 1
    assert "robot.toml" in run("profile", "list").stdout
    assert {"name": "robot", "title": "NVIDIA Jetson Orin Nano", "path": str(path)} in json.loads(
        run("profile", "list", "--json").stdout
    )


def test_a_profile_is_checked_before_it_is_used(run: Run, tmp_path: Path, home: Home) -> None:
    path = tmp_path / "robot.toml"
    path.write_text('name = "robot"\ntitle = "Robot"\n[match]\nmachine = ["aarch64"]\n')
    checked = run("profile", "check", path)
    assert "jetson-orin-nano tells more" in checked.stdout
    assert str(home.profiles) in checked.stderr
    path.write_text('name = "robot"\ntitle = "Robot"\n[match]\nchassis = ["laptop"]\n')
    assert "does not fit this machine: nothing says the chassis" in run("profile", "check", path).stdout
    found = json.loads(run("profile", "check", path, "--json").stdout)
    assert (found["name"], found["fits"], found["wins"]) == ("robot", False, False)
    path.write_text('name = "robot"\ntitle = "Robot"\n[training]\ncors = 2\n')
    with pytest.raises(SettingsError, match=r"robot.toml: training.cors: .*\(did you mean cores\?\)"):
        run("profile", "check", path)


def test_the_schema_for_editors_is_printed(home: Home) -> None:
    assert CliRunner().invoke(cli, ["device", "profile", "schema"]).stdout == schema_text()
    assert not home.root.exists()
