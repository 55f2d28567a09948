"""Files of ``/proc`` and ``/sys`` as real machines show them, shortened to what is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ARM_CPUINFO = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: {part}
"""
X86_CPUINFO = """processor\t: {n}
vendor_id\t: GenuineIntel
model name\t: {model}
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 avx avx2 fma f16c {more}
"""


def arm(count: int, part: str, features: str) -> str:
    return "\n".join(ARM_CPUINFO.format(n=n, part=part, features=features) for n in range(count))


def x86(cores: int, model: str, more: str = "") -> str:
    """Give two hardware threads a core."""
    return "\n".join(X86_CPUINFO.format(n=n, model=model, core=n % cores, more=more) for n in range(2 * cores))


@dataclass(frozen=True)
class Recording:
    """A machine.

    Attributes:
        machine: its instruction set.
        profile: the profile that should be recognised.
        threads: threads that training should get.
        cores: hardware threads.
        memory_mb: memory that a process may use.
        installed_mb: memory in the machine, where that is more.
        files: its files below the root.
    """

    machine: str
    profile: str
    threads: int
    cores: int
    memory_mb: int
    installed_mb: int | None = None
    files: dict[str, str] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        for name, text in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root


RECORDINGS = {
    "pi 5": Recording(
        machine="aarch64",
        profile="raspberry-pi-5",
        threads=3,
        cores=4,
        memory_mb=8059,
        files={
            "proc/cpuinfo": arm(4, "0xd0b", "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp"),
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        },
    ),
    "pi 4": Recording(
        machine="aarch64",
        profile="raspberry-pi-4",
        threads=3,
        cores=4,
        memory_mb=3794,
        files={
            "proc/cpuinfo": arm(4, "0xd08", "fp asimd evtstrm crc32 cpuid"),
            "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        },
    ),
    "pi 3": Recording(
        machine="aarch64",
        profile="generic-arm64",
        threads=4,
        cores=4,
        memory_mb=905,
        files={
            "proc/cpuinfo": arm(4, "0xd03", "fp asimd evtstrm crc32 cpuid"),
            "proc/device-tree/model": "Raspberry Pi 3 Model B Plus Rev 1.3\0",
        },
    ),
    "jetson orin nano": Recording(
        machine="aarch64",
        profile="jetson-orin",
        threads=5,
        cores=6,
        memory_mb=7620,
        files={
            "proc/cpuinfo": arm(6, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        },
    ),
    "arm cloud machine": Recording(
        machine="aarch64",
        profile="generic-arm64",
        threads=2,
        cores=2,
        memory_mb=3800,
        files={
            "proc/cpuinfo": arm(2, "0xd0c", "fp asimd asimddp"),
            "sys/class/dmi/id/sys_vendor": "Amazon EC2",
        },
    ),
    "laptop": Recording(
        machine="x86_64",
        profile="x86-laptop",
        threads=3,
        cores=8,
        memory_mb=15800,
        files={
            "proc/cpuinfo": x86(4, "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "avx512f avx512_vnni"),
            "sys/class/dmi/id/chassis_type": "10",
            "sys/class/dmi/id/sys_vendor": "LENOVO",
            "sys/class/dmi/id/product_name": "20XW0026GE",
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/drm/card1/device/vendor": "0x8086",
        },
    ),
    "laptop that hides its chassis": Recording(
        machine="x86_64",
        profile="x86-laptop",
        threads=1,
        cores=4,
        memory_mb=7900,
        files={
            "proc/cpuinfo": x86(2, "Intel(R) Core(TM) i5-7200U"),
            "sys/class/dmi/id/chassis_type": "2",
            "sys/class/power_supply/BAT1/type": "Battery",
        },
    ),
    "desktop with a wireless mouse": Recording(
        machine="x86_64",
        profile="x86-desktop",
        threads=8,
        cores=16,
        memory_mb=32000,
        files={
            "proc/cpuinfo": x86(8, "AMD Ryzen 7 5800X 8-Core Processor"),
            "sys/class/dmi/id/chassis_type": "3",
            "sys/class/dmi/id/product_name": "To Be Filled By O.E.M.",
            "sys/class/power_supply/hidpp_battery_0/type": "Battery",
            "sys/class/power_supply/hidpp_battery_0/scope": "Device",
            "sys/class/drm/card0/device/vendor": "0x10de",
            "sys/class/drm/card0-DP-1/status": "connected",
        },
    ),
    "container on a server": Recording(
        machine="x86_64",
        profile="x86-desktop",
        threads=2,
        cores=64,
        memory_mb=1024,
        installed_mb=256 * 1024,
        files={
            "proc/cpuinfo": x86(32, "AMD EPYC 7543 32-Core Processor"),
            "sys/class/dmi/id/chassis_type": "23",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/memory.max": str(1024 * 1024 * 1024),
        },
    ),
    "virtual machine that says nothing": Recording(
        machine="x86_64", profile="generic", threads=2, cores=2, memory_mb=4000
    ),
}
