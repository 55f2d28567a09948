from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.hardware import Hardware, on_linux
from agent.device.profile import Profile, load_profiles, read_profile, recognise
from agent.errors import SettingsError
from tests.device.recordings import RECORDINGS

PROFILES = load_profiles()


def played(name: str, root: Path) -> Hardware:
    recording = RECORDINGS[name]
    known = Hardware(
        system="linux",
        machine=recording.machine,
        physical_cores=recording.cores,
        logical_cores=recording.cores,
        usable_cores=recording.cores,
        memory_bytes=(recording.installed_mb or recording.memory_mb) * 1024 * 1024,
    )
    return on_linux(known, recording.write(root))


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_machines_are_recognised_from_what_they_show(name: str, tmp_path: Path) -> None:
    recording = RECORDINGS[name]
    hardware = played(name, tmp_path)
    found = recognise(hardware, PROFILES)
    budget = found.profile.budget_for(hardware)
    assert found.profile.name == recording.profile
    assert found.reasons
    assert budget.threads == recording.threads
    assert hardware.memory_mb == recording.memory_mb
    assert 0 < budget.memory_mb < recording.memory_mb


def test_the_reasons_say_what_was_seen(tmp_path: Path) -> None:
    found = recognise(played("pi 5", tmp_path), PROFILES)
    assert found.reasons == (
        "the instruction set is aarch64",
        "the device tree says “Raspberry Pi 5 Model B Rev 1.0”",
    )
    assert recognise(Hardware(system="plan9", machine="mips"), PROFILES).reasons == ("no more specific profile fits",)


def test_a_mac_with_apple_silicon_is_recognised() -> None:
    mac = Hardware(system="darwin", machine="aarch64", cpu_model="Apple M2", physical_cores=8, usable_cores=8)
    assert recognise(mac, PROFILES).profile.name == "apple-silicon"


def test_every_built_in_profile_is_found_and_leaves_a_thread() -> None:
    assert {profile.name for profile in PROFILES} >= {
        "generic",
        "generic-arm64",
        "x86-desktop",
        "x86-laptop",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "jetson-orin",
        "apple-silicon",
    }
    for profile in PROFILES:
        assert profile.budget_for(Hardware(system="linux", machine="x86_64")).threads == 1


def test_the_owner_s_profile_takes_the_place_of_a_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "generic.toml").write_text('name = "generic"\ntitle = "Mine"\n[training]\ncores = 1\n')
    (tmp_path / "my-board.toml").write_text('name = "my-board"\ntitle = "Board"\n[match]\nboard = ["RockPro"]\n')
    profiles = load_profiles(extra=[tmp_path])
    assert [profile.title for profile in profiles if profile.name == "generic"] == ["Mine"]
    assert recognise(Hardware(system="linux", machine="aarch64", board="Pine64 RockPro64"), profiles).profile.name == (
        "my-board"
    )


def test_rules_on_features_and_memory_must_hold() -> None:
    profile = Profile.model_validate(
        {"name": "big", "title": "Big", "match": {"features": ["avx512_bf16"], "memory_mb_min": 8000}}
    )
    big = Hardware(system="linux", machine="x86_64", features=frozenset({"avx512_bf16"}), memory_bytes=16 << 30)
    assert recognise(big, [profile]).reasons == (
        "the processor has avx512_bf16",
        "there are 16,384 MiB of memory",
    )
    for other in (
        Hardware(system="linux", machine="x86_64", memory_bytes=16 << 30),
        Hardware(system="linux", machine="x86_64", features=big.features, memory_bytes=1 << 30),
    ):
        with pytest.raises(SettingsError, match="no profile"):
            recognise(other, [profile])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "cannot be read"),
        ('name = "x"\ntitle = "X"\ncolour = "red"\n', "colour"),
        ('name = "x"\ntitle = "X"\n[training]\ncores = "all"\n', "training.cores"),
        ('name = "x"\ntitle = "X"\n[training]\nmemory_share = 2.0\n', "training.memory_share"),
        ('name = "other"\ntitle = "X"\n', "calls itself other"),
        ('title = "X"\n', "name"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_place(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=complaint) as caught:
        read_profile(path)
    assert str(path) in caught.value.advice


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_profile(tmp_path / "x.toml")
