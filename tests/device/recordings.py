"""Files of ``/proc`` and ``/sys`` as real machines show them, shortened to what is read.

Sources. Raspberry Pis: ``model`` as in raspberrypi/linux ``arch/arm64/boot/dts/broadcom`` with the revision that the
firmware adds; features and part numbers from published ``/proc/cpuinfo`` of each board. Jetsons: ``model`` and
``compatible`` from Linux' ``Documentation/devicetree/bindings/arm/tegra.yaml``, NVIDIA's jetson-gpio and published
device trees, among them Orin Nanos that call themselves Orin NX; thermal zones as L4T 32 and 36 name them. Memory:
``MemTotal`` of such boards, MiB.
"""

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


def zones(thousandths: dict[str, int | None]) -> dict[str, str]:
    """Give the files of thermal zones by their type; None for one that cannot be read."""
    files = {}
    for number, (kind, value) in enumerate(thousandths.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = f"{kind}\n"
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = "" if value is None else f"{value}\n"
    return files


@dataclass(frozen=True)
class Recording:
    """A machine.

    Attributes:
        machine: its instruction set.
        profile: the profile that should be recognised.
        base: the base that should suit it; None for none.
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
    base: str | None = None
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
        base="Qwen3-0.6B",
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
        base="SmolLM2-360M",
        files={
            "proc/cpuinfo": arm(4, "0xd08", "fp asimd evtstrm crc32 cpuid"),
            "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        },
    ),
    "pi 3": Recording(
        machine="aarch64",
        profile="raspberry-pi-3",
        threads=3,
        cores=4,
        memory_mb=905,
        base="SmolLM2-135M",
        files={
            "proc/cpuinfo": arm(4, "0xd03", "fp asimd evtstrm crc32 cpuid"),
            "proc/device-tree/model": "Raspberry Pi 3 Model B Plus Rev 1.3\0",
        },
    ),
    "jetson orin nano": Recording(
        machine="aarch64",
        profile="jetson-orin-nano",
        threads=5,
        cores=6,
        memory_mb=7620,
        base="Qwen3-0.6B",
        files={
            "proc/cpuinfo": arm(6, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        },
    ),
    "pi zero 2": Recording(
        machine="aarch64",
        profile="raspberry-pi-zero-2",
        threads=3,
        cores=4,
        memory_mb=416,
        base="the seedling",
        files={
            "proc/cpuinfo": arm(4, "0xd03", "fp asimd evtstrm crc32 cpuid"),
            "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
            "proc/device-tree/compatible": "raspberrypi,model-zero-2-w\0brcm,bcm2837\0",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "47236\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    ),
    "pi 3 a+": Recording(
        machine="aarch64",
        profile="raspberry-pi-zero-2",
        threads=3,
        cores=4,
        memory_mb=419,
        base="the seedling",
        files={
            "proc/cpuinfo": arm(4, "0xd03", "fp asimd evtstrm crc32 cpuid"),
            "proc/device-tree/model": "Raspberry Pi 3 Model A Plus Rev 1.0\0",
        },
    ),
    "pi 400": Recording(
        machine="aarch64",
        profile="raspberry-pi-4",
        threads=3,
        cores=4,
        memory_mb=3791,
        base="SmolLM2-360M",
        files={
            "proc/cpuinfo": arm(4, "0xd08", "fp asimd evtstrm crc32 cpuid"),
            "proc/device-tree/model": "Raspberry Pi 400 Rev 1.0\0",
        },
    ),
    "compute module 5": Recording(
        machine="aarch64",
        profile="raspberry-pi-5",
        threads=3,
        cores=4,
        memory_mb=2006,
        base="SmolLM2-135M",
        files={
            "proc/cpuinfo": arm(4, "0xd0b", "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp"),
            "proc/device-tree/model": "Raspberry Pi Compute Module 5 Rev 1.0\0",
        },
    ),
    "jetson nano": Recording(
        machine="aarch64",
        profile="jetson-nano",
        threads=3,
        cores=4,
        memory_mb=3956,
        base="SmolLM2-360M",
        files={
            "proc/cpuinfo": arm(4, "0xd07", "fp asimd evtstrm aes pmull sha1 sha2 crc32"),
            "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
            **zones(
                {"AO-therm": 41500, "CPU-therm": 34000, "GPU-therm": 31000, "PLL-therm": 31500, "PMIC-Die": 100000}
            ),
        },
    ),
    "jetson orin nano on a carrier that says nx": Recording(
        machine="aarch64",
        profile="jetson-orin-nano",
        threads=5,
        cores=6,
        memory_mb=7620,
        base="Qwen3-0.6B",
        files={
            "proc/cpuinfo": arm(6, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
            **zones({"cpu-thermal": 43531, "gpu-thermal": 42937, "cv0-thermal": None, "tj-thermal": 43600}),
        },
    ),
    "jetson orin nx": Recording(
        machine="aarch64",
        profile="jetson-orin-nx",
        threads=7,
        cores=8,
        memory_mb=15655,
        base="Qwen3-1.7B",
        files={
            "proc/cpuinfo": arm(8, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        },
    ),
    "jetson agx orin": Recording(
        machine="aarch64",
        profile="jetson-agx-orin",
        threads=11,
        cores=12,
        memory_mb=62841,
        base="Qwen3-4B",
        files={
            "proc/cpuinfo": arm(12, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        },
    ),
    "orin module that nobody has heard of": Recording(
        machine="aarch64",
        profile="jetson-orin",
        threads=7,
        cores=8,
        memory_mb=7400,
        base="Qwen3-0.6B",
        files={
            "proc/cpuinfo": arm(8, "0xd42", "fp asimd fphp asimdhp asimddp"),
            "sys/firmware/devicetree/base/model": "Somebody's Robot\0",
            "sys/firmware/devicetree/base/compatible": "somebody,robot-1\0nvidia,tegra234\0",
        },
    ),
    "laptop with a graphics card": Recording(
        machine="x86_64",
        profile="x86-laptop-gpu",
        threads=7,
        cores=16,
        memory_mb=31700,
        base="Qwen3-4B",
        files={
            "proc/cpuinfo": x86(8, "AMD Ryzen 9 5900HS with Radeon Graphics"),
            "sys/class/dmi/id/chassis_type": "10",
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/power_supply/BAT0/capacity": "61\n",
            "sys/class/power_supply/BAT0/status": "Discharging\n",
            "sys/class/drm/card0/device/vendor": "0x10de",
            "sys/class/drm/card1/device/vendor": "0x1002",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module",
        },
    ),
    "desktop without a graphics card": Recording(
        machine="x86_64",
        profile="x86-desktop",
        threads=6,
        cores=12,
        memory_mb=15900,
        base="Qwen3-1.7B",
        files={
            "proc/cpuinfo": x86(6, "Intel(R) Core(TM) i5-10400 CPU @ 2.90GHz"),
            "sys/class/dmi/id/chassis_type": "3",
            "sys/class/drm/card0/device/vendor": "0x8086",
            "sys/class/hwmon/hwmon1/name": "coretemp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "52000\n",
            "sys/class/hwmon/hwmon1/temp2_input": "49000\n",
            "proc/pressure/memory": "some avg10=0.12 avg60=0.00 avg300=0.00 total=17\nfull avg10=0.00 total=3\n",
        },
    ),
    "arm cloud machine": Recording(
        machine="aarch64",
        profile="generic-arm64",
        threads=2,
        cores=2,
        memory_mb=3800,
        base="SmolLM2-360M",
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
        base="Qwen3-1.7B",
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
        base="Qwen3-0.6B",
        files={
            "proc/cpuinfo": x86(2, "Intel(R) Core(TM) i5-7200U"),
            "sys/class/dmi/id/chassis_type": "2",
            "sys/class/power_supply/BAT1/type": "Battery",
        },
    ),
    "desktop with a wireless mouse": Recording(
        machine="x86_64",
        profile="x86-desktop-gpu",
        threads=8,
        cores=16,
        memory_mb=32000,
        base="Qwen3-4B",
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
        machine="x86_64", profile="generic", threads=2, cores=2, memory_mb=4000, base="SmolLM2-135M"
    ),
}
