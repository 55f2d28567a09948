from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.device.hardware import Hardware, on_linux
from agent.device.profile import ALL_LAYERS, Profile
from agent.device.profile_files import load_profiles
from agent.device.recognition import recognise
from agent.device.sensors.heat import HeatSensor
from agent.device.sensors.power import PiSensor, SupplySensor
from agent.llm.gguf_file import GgufModel, linear_names, open_gguf
from agent.llm.seedling import SEEDLING_PATH
from agent.thresholds import GovernorSettings
from agent.training.footprint import MIB, Shape, footprint
from agent.training.plan import MARGIN
from tests.device.public_models import PUBLIC_MODELS, public_model
from tests.device.recordings import RECORDINGS

PROFILES = load_profiles()
BY_NAME = {profile.name: profile for profile in PROFILES}
WORKER_MB = 232
"""Resident size of a training worker before it opens a base, measured on Linux with torch 2.13 for the CPU."""

every_profile = pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)


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


MAC = Hardware(
    system="darwin",
    machine="aarch64",
    cpu_model="Apple M2",
    physical_cores=4,
    logical_cores=8,
    usable_cores=8,
    memory_bytes=16 << 30,
    gpus=("apple",),
)


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_machines_are_recognised_from_what_they_show(name: str, tmp_path: Path) -> None:
    recording = RECORDINGS[name]
    hardware = played(name, tmp_path)
    found = recognise(hardware, PROFILES)
    budget, base = found.profile.budget_for(hardware), found.profile.base_for(hardware)
    assert found.profile.name == recording.profile
    assert found.reasons
    assert budget.threads == recording.threads
    assert hardware.memory_mb == recording.memory_mb
    assert 0 < budget.memory_mb < recording.memory_mb
    assert (base.model if base else None) == recording.base


def test_a_mac_with_apple_silicon_is_recognised_and_uses_its_performance_cores() -> None:
    found = recognise(MAC, PROFILES).profile
    assert (found.name, found.budget_for(MAC).threads, found.runtime.offloaded) == ("apple-silicon", 4, ALL_LAYERS)


def test_every_built_in_profile_has_a_machine_that_is_recognised_as_it() -> None:
    recorded = {recording.profile for recording in RECORDINGS.values()} | {recognise(MAC, PROFILES).profile.name}
    assert recorded == set(BY_NAME)


@pytest.mark.parametrize(
    "hardware",
    [
        Hardware(system="plan9", machine="mips"),
        Hardware(system="linux", machine="riscv64", board="StarFive VisionFive 2", physical_cores=4, usable_cores=4),
        Hardware(system="windows", machine="x86_64", chassis="unknown"),
    ],
    ids=lambda hardware: hardware.system,
)
def test_an_unknown_machine_gets_the_generic_plan(hardware: Hardware) -> None:
    found = recognise(hardware, PROFILES)
    assert (found.profile.name, found.reasons) == ("generic", ("no more specific profile fits",))
    assert 1 <= found.profile.budget_for(hardware).threads <= hardware.usable_cores
    assert found.profile.runtime.offloaded == 0
    assert found.profile.base_for(hardware) is None


@every_profile
def test_a_profile_never_takes_more_threads_than_there_are_and_leaves_one_to_work_with(profile: Profile) -> None:
    for cores in (1, 2, 4, 16):
        hardware = Hardware(system="x", machine="y", physical_cores=cores, logical_cores=2 * cores, usable_cores=cores)
        assert 1 <= profile.training.threads_for(hardware) <= cores
        assert 1 <= profile.runtime.threads_for(hardware) <= cores


@every_profile
def test_a_base_that_suits_is_as_large_as_it_is_said_to_be(profile: Profile) -> None:
    for base in profile.bases:
        model = _model(base.model, base.quantisation)
        packed = sum(tensor.packed.size for tensor in model.tensors.values()) / MIB
        assert base.file_mb == pytest.approx(packed, rel=0.03, abs=1), base.model
        assert base.training_mb == pytest.approx(_peak_mb(model, profile), rel=0.03), base.model


@every_profile
def test_a_base_that_suits_fits_into_what_training_may_take(profile: Profile) -> None:
    for base in profile.bases:
        allowed = base.memory_mb_min * profile.training.memory_share
        assert base.training_mb * MARGIN <= allowed, (base.model, base.training_mb, allowed)


@every_profile
def test_bases_get_larger_with_the_memory_and_every_profile_knows_one(profile: Profile) -> None:
    assert profile.bases
    assert list(profile.bases) == sorted(profile.bases, key=lambda base: base.memory_mb_min)
    assert list(profile.bases) == sorted(profile.bases, key=lambda base: base.training_mb)


@every_profile
def test_what_a_profile_names_to_compile_for_is_an_option_of_ggml_or_cmake(profile: Profile) -> None:
    known = {"GGML_NATIVE", "GGML_CPU_ARM_ARCH", "GGML_CUDA", "GGML_METAL", "CMAKE_CUDA_ARCHITECTURES"}
    options = {option.removeprefix("-D").partition("=")[0] for option in profile.llama.cmake}
    assert options
    assert options <= known
    if "GGML_CPU_ARM_ARCH" in options:  # ggml reads it only where it does not ask the processor
        assert "-DGGML_NATIVE=OFF" in profile.llama.cmake
    assert (profile.runtime.gpu_layers == "all") == any(re.search("CUDA=|METAL=", o) for o in profile.llama.cmake)


@pytest.mark.parametrize(
    ("name", "zone", "degrees"),
    [
        ("pi zero 2", "cpu-thermal", 47.236),
        ("jetson nano", "CPU-therm", 34.0),
        ("jetson orin nano on a carrier that says nx", "tj-thermal", 43.6),
        ("desktop without a graphics card", "coretemp", 52.0),
    ],
)
def test_the_zones_that_a_profile_names_are_those_that_its_machine_has(
    name: str, zone: str, degrees: float, tmp_path: Path
) -> None:
    zones = BY_NAME[RECORDINGS[name].profile].governor_layer().get("temperature", {}).get("zones", [])
    found = HeatSensor(RECORDINGS[name].write(tmp_path), tuple(zones)).read()
    assert (found.zone, found.values) == (zone, {"temperature_c": degrees})


@every_profile
def test_a_profile_s_governor_is_one_and_its_sensors_are_known(profile: Profile) -> None:
    governor = GovernorSettings.model_validate(profile.governor_layer())
    assert governor.temperature.zones == profile.sensors.temperature
    assert governor.model_copy(update={"temperature": profile.governor.temperature}) == profile.governor
    assert set(profile.sensors.expected) <= {HeatSensor.name, PiSensor.name, SupplySensor.name}


def test_a_raspberry_pi_pauses_before_its_firmware_throttles_it() -> None:
    for name in ("raspberry-pi-zero-2", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5"):
        assert BY_NAME[name].governor.temperature.stop < 80
        assert BY_NAME[name].governor.undervoltage.enabled


def test_built_in_profiles_say_where_editors_find_the_schema() -> None:
    folder = Path(__file__).parents[2] / "firmware_profiles"
    for path in folder.glob("*.toml"):
        assert path.read_text().startswith("#:schema ./profile.schema.json\n"), path.name


def _model(name: str, quantisation: str) -> GgufModel:
    return public_model(name, quantisation) if name in PUBLIC_MODELS else open_gguf(SEEDLING_PATH)


def _peak_mb(model: GgufModel, profile: Profile) -> float:
    """Predict the peak of a training with checkpointing in float32, the smallest and the safest way there is."""
    plan = profile.training
    length = min(plan.window, model.config.context_length) - 1
    shape = Shape(
        rows=plan.micro_batch * length,
        length=length,
        itemsize=4,
        rank=plan.max_rank,
        target_modules=linear_names(model),
        checkpointing=True,
    )
    return WORKER_MB + footprint(model, shape).total / MIB
