from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.device import machine as machine_module
from agent.device.hardware import Hardware, detect
from agent.device.machine import Answering, profile_folders, this_machine
from agent.device.profile import ALL_LAYERS
from agent.errors import SettingsError
from agent.paths import Home
from agent.service import create_device, settings_of

MINE = """
name = "mine"
title = "Mine"
[match]
system = ["{system}"]
[training]
cores = 1
compute = "float32"
memory_share = 0.25
max_rank = 12
micro_batch = 2
[runtime]
cores = 1
context = 256
batch = 64
gpu_layers = "all"
[governor.temperature]
stop = 60
resume = 50
[sensors]
temperature = ["cpu-*"]
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "device")
    home.profiles.mkdir(parents=True)
    (home.profiles / "mine.toml").write_text(MINE.format(system=detect().system))
    return home


def test_the_owner_s_folder_comes_last_and_the_machine_s_before(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    site = home.root / "site"
    site.mkdir()
    (site / "mine.toml").write_text('name = "mine"\ntitle = "Ours"\n')
    monkeypatch.setattr(machine_module, "site_profiles", lambda: site)
    assert profile_folders(home) == (site, home.profiles)
    found = this_machine(home)
    assert (found.profile.title, found.origin) == ("Mine", home.profiles / "mine.toml")
    (home.profiles / "mine.toml").unlink()
    assert this_machine(home).recognised.verdicts[-1].profile.name != "mine"
    assert {verdict.profile.title for verdict in this_machine(home).recognised.verdicts} >= {"Ours"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another folder")
def test_everybody_s_profiles_lie_beside_other_configuration() -> None:
    assert machine_module.site_profiles() == Path("/etc/bramble/profiles")


def test_answers_are_computed_as_the_profile_says_unless_somebody_says_otherwise(home: Home) -> None:
    found = this_machine(home)
    assert found.answering() == Answering(threads=1, context=256, batch=64, gpu_layers=ALL_LAYERS)
    assert found.answering(threads=3, context=512, gpu_layers=0) == Answering(3, 512, 64, 0)


def test_a_device_s_rounds_are_bounded_by_its_profile_and_the_owner_s_settings_win(home: Home) -> None:
    create_device(home, nickname="pi")
    found = settings_of(home)
    quarter = this_machine(home).hardware.memory_mb // 4
    assert (found.threads, found.compute, found.rank, found.micro_batch) == (1, "float32", 12, 2)
    assert found.memory_mb == pytest.approx(quarter, abs=1)
    assert found.nickname == "pi"
    assert (found.governor.temperature.stop, found.governor.temperature.zones) == (60, ["cpu-*"])
    home.settings.write_text(
        'threads = 2\nmemory_mb = 70\nrank = 3\ncompute = "auto"\n[governor.temperature]\nstop = 55\n'
    )
    found = settings_of(home, threads=5)
    assert (found.governor.temperature.stop, found.governor.temperature.resume) == (55, 50)
    assert (found.threads, found.memory_mb, found.rank, found.compute) == (5, 70, 3, "auto")


def test_a_new_device_leaves_to_the_profile_what_its_owner_does_not_say(home: Home) -> None:
    create_device(home)
    before = settings_of(home).threads
    (home.profiles / "mine.toml").write_text(MINE.format(system=detect().system).replace("cores = 1", "cores = 64"))
    assert before == 1
    assert settings_of(home).threads == detect().usable_cores
    text = home.settings.read_text()
    home.settings.write_text(text.replace("# memory_mb", "memory_mb"))
    assert settings_of(home).memory_mb is not None


def test_a_wrong_profile_of_the_owner_stops_with_its_place(home: Home) -> None:
    (home.profiles / "mine.toml").write_text('name = "mine"\ntitle = "Mine"\n[training]\nwindow = 9\n')
    with pytest.raises(SettingsError, match=r"mine.toml: training.window is 9") as caught:
        this_machine(home)
    assert str(home.profiles / "mine.toml") in caught.value.advice


def test_a_machine_with_too_little_memory_for_every_base_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Hardware(system="linux", machine="mips", memory_bytes=64 << 20)
    monkeypatch.setattr(machine_module, "detect", lambda **_options: small)
    found = this_machine(Home(tmp_path))
    assert (found.profile.name, found.base, found.budget.memory_mb) == ("generic", None, 25)
