from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.device.sensors.load import DiskSensor, OthersSensor, PressureSensor, PsutilMemorySensor, SpaceSensor
from agent.device.sensors.sensor import SensorFailedError
from agent.testing import check_sensor

MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"
PRESSURE = "some avg10=12.34 avg60=5.00 avg300=1.00 total=1\nfull avg10=1.00 avg60=0.50 avg300=0.10 total=1\n"


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes until it is ended."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as found:
        assert found.stdout is not None
        found.stdout.readline()
        yield found
        found.kill()


def share(sensor: OthersSensor, used: float) -> float:
    """Give the others' share in a time in which one process used so much, in seconds of one core."""
    sensor.read()
    burn(used)
    return float(sensor.read().values["others_cpu_percent"])


def test_what_this_process_and_its_workers_use_is_not_others(burner: subprocess.Popen[bytes]) -> None:
    with_it = OthersSensor(lambda: (burner.pid,))
    without = OthersSensor()
    with_it.read(), without.read()
    burn(1.0)
    mine, others = (float(sensor.read().values["others_cpu_percent"]) for sensor in (with_it, without))
    used = 100 / (os.cpu_count() or 1)
    assert others - mine > 0.2 * used  # the burner's part, a fifth of a core on a busy machine at least


def test_the_first_look_says_nothing_and_why() -> None:
    assert "second look" in OthersSensor().read().missing


def test_a_worker_that_has_gone_is_passed_over() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert 0 <= share(OthersSensor(lambda: (gone.pid,)), 0.05) <= 100


def test_memory_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_text(PRESSURE)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    said = PressureSensor(tmp_path).read()
    assert said.values == {"memory_pressure_percent": 12.34, "memory_available_percent": 25}
    assert not said.missing


def test_a_kernel_without_pressure_information_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(SensorFailedError):
        PressureSensor(tmp_path).read()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    said = PressureSensor(tmp_path).read()
    assert said.values == {"memory_available_percent": 25}
    assert "psi=1" in said.missing


def test_the_disk_of_a_directory_that_is_not_there_yet_is_that_above_it(tmp_path: Path) -> None:
    assert DiskSensor(tmp_path / "a/b").read().values["disk_free_mb"] > 0


def test_space_is_what_files_take_and_links_are_not_followed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(os.urandom(5_000_000))
    (home / "deep/blob").write_bytes(os.urandom(2_000_000))
    (home / "link").symlink_to(tmp_path / "elsewhere")
    assert SpaceSensor(home).read().values["disk_used_mb"] == pytest.approx(2.0, abs=0.1)


def test_they_keep_their_promises_on_this_machine(tmp_path: Path) -> None:
    for sensor in (
        OthersSensor(),
        PressureSensor(Path("/")),
        PsutilMemorySensor(),
        DiskSensor(tmp_path),
        SpaceSensor(tmp_path),
    ):
        check_sensor(sensor)
