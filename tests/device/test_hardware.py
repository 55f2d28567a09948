from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.device import hardware as hardware_module
from agent.device import linux
from agent.device.hardware import Hardware, detect, on_linux
from tests.device.recordings import RECORDINGS


def test_this_machine_is_seen() -> None:
    found = detect()
    assert found.system
    assert found.machine
    assert 1 <= found.usable_cores <= found.logical_cores
    assert found.memory_mb > 100
    assert json.loads(json.dumps(found.to_dict()))["machine"] == found.machine


def test_nothing_is_missed_where_there_is_nothing(tmp_path: Path) -> None:
    found = detect(root=tmp_path)
    assert (found.board, found.vendor, found.gpus, found.battery) == ("", "", (), False)
    assert found.memory_bytes > 0


def test_a_container_s_limits_are_the_machine(tmp_path: Path) -> None:
    root = RECORDINGS["container on a server"].write(tmp_path)
    known = Hardware(system="linux", machine="x86_64", usable_cores=64, memory_bytes=256 << 30)
    found = on_linux(known, root)
    assert (found.usable_cores, found.memory_mb, found.physical_cores) == (2, 1024, 32)


def test_older_control_groups_are_read_too(tmp_path: Path) -> None:
    for name, text in {
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "536870912",
    }.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert linux.core_quota(tmp_path) == 1
    assert linux.memory_limit(tmp_path) == 536870912


@pytest.mark.parametrize(("quota", "memory"), [("max 100000", "max"), ("", ""), ("-1", "9223372036854771712")])
def test_no_limit_is_no_limit(quota: str, memory: str, tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(quota)
    (folder / "memory.max").write_text(memory)
    assert linux.core_quota(tmp_path) is None
    assert linux.memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "model", "gpus", "features"),
    [
        ("laptop", "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", ("intel",), {"avx2", "avx512_vnni"}),
        ("desktop with a wireless mouse", "AMD Ryzen 7 5800X 8-Core Processor", ("nvidia",), {"avx2", "fma"}),
        ("jetson orin nano", "Cortex-A78AE", ("nvidia",), {"asimd", "asimddp"}),
        ("pi 4", "Cortex-A72", (), {"asimd"}),
    ],
)
def test_processors_and_graphics_are_named(
    name: str, model: str, gpus: tuple[str, ...], features: set[str], tmp_path: Path
) -> None:
    found = on_linux(Hardware(system="linux", machine=RECORDINGS[name].machine), RECORDINGS[name].write(tmp_path))
    assert found.cpu_model == model
    assert found.gpus == gpus
    assert features <= found.features


def test_placeholders_of_makers_are_no_names(tmp_path: Path) -> None:
    found = on_linux(
        Hardware(system="linux", machine="x86_64"), RECORDINGS["desktop with a wireless mouse"].write(tmp_path)
    )
    assert found.product == ""
    assert not found.battery


def test_a_mac_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"hw.model": "MacBookAir10,1", "machdep.cpu.brand_string": "Apple M1", "hw.optional.arm.FEAT_BF16": "0"}
    monkeypatch.setattr(hardware_module, "_sysctl", lambda key: values.get(key, ""))
    monkeypatch.setattr(hardware_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(hardware_module.platform, "machine", lambda: "arm64")
    found = detect()
    assert (found.system, found.machine, found.cpu_model) == ("darwin", "aarch64", "Apple M1")
    assert (found.vendor, found.product, found.chassis) == ("Apple", "MacBookAir10,1", "laptop")
    assert found.features == {"asimd"}


def test_a_system_without_sysctl_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    assert hardware_module._sysctl("hw.model") == ""
