from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.sensors.heat import HeatSensor
from agent.device.sensors.power import PiSensor, PsutilSupplySensor, SupplySensor
from agent.device.sensors.sensor import Measured, SensorFailedError
from agent.testing import check_sensor


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def supply(**files: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name.replace('__', '/')}": f"{text}\n" for name, text in files.items()}


BATTERY = {"BAT0__type": "Battery", "BAT0__present": "1", "BAT0__capacity": "61"}
SUPPLIES = {
    "a laptop on its battery": (
        supply(**BATTERY, BAT0__status="Discharging", AC__type="Mains", AC__online="0"),
        {"on_battery": True, "charge_percent": 61},
    ),
    "a laptop on mains": (
        supply(**BATTERY, BAT0__status="Charging", AC__type="Mains", AC__online="1"),
        {"on_battery": False, "charge_percent": 61},
    ),
    "a laptop that is fed by USB": (
        supply(**BATTERY, BAT0__status="Not charging", ucsi__type="USB", ucsi__online="1"),
        {"on_battery": False, "charge_percent": 61},
    ),
    "a tablet that lists no mains": (
        supply(**BATTERY, BAT0__status="Discharging"),
        {"on_battery": True, "charge_percent": 61},
    ),
    "two batteries": (
        supply(
            **BATTERY, BAT0__status="Unknown", BAT1__type="Battery", BAT1__status="Discharging", BAT1__capacity="31"
        ),
        {"on_battery": True, "charge_percent": 46},
    ),
    "a desktop with a wireless mouse": (
        supply(hid__type="Battery", hid__scope="Device", hid__status="Discharging", hid__capacity="9"),
        {"on_battery": False},
    ),
    "a desktop": ({}, {"on_battery": False}),
}


@pytest.mark.parametrize("machine", SUPPLIES)
def test_what_feeds_a_machine_is_read_from_its_power_supplies(tmp_path: Path, machine: str) -> None:
    files, values = SUPPLIES[machine]
    said = SupplySensor(write(tmp_path, files)).read()
    assert said.values == values
    assert ("charge_percent" in said.absent) == ("charge_percent" not in values)


def test_a_battery_that_hides_its_charge_is_said_to(tmp_path: Path) -> None:
    said = SupplySensor(write(tmp_path, supply(b__type="Battery", b__status="Discharging", b__capacity="?"))).read()
    assert said.values == {"on_battery": True}
    assert "does not say its charge" in said.missing


@pytest.mark.parametrize(
    ("bits", "undervoltage", "throttled"),
    [("0", 0, 0), ("50000", 0, 0), ("50005", 1, 1), ("1", 1, 0), ("80008", 0, 1), ("20002", 0, 1), ("4", 0, 1)],
)
def test_the_pis_firmware_tells_of_now_and_its_history_is_left_out(
    tmp_path: Path, bits: str, undervoltage: int, throttled: int
) -> None:
    path = "sys/devices/platform/soc/soc:firmware/get_throttled"
    said = PiSensor(write(tmp_path, {path: f"{bits}\n"})).read()
    assert said.values == {"undervoltage": bool(undervoltage), "throttled": bool(throttled)}


def test_other_machines_have_no_such_firmware_and_a_pi_that_hides_it_is_a_failure(tmp_path: Path) -> None:
    assert PiSensor(tmp_path).read() == Measured(absent=frozenset({"undervoltage", "throttled"}))
    write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    with pytest.raises(SensorFailedError, match="Raspberry Pi, but"):
        PiSensor(tmp_path).read()
    write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "nonsense"})
    with pytest.raises(SensorFailedError, match="'nonsense'"):
        PiSensor(tmp_path).read()


def zones(**degrees: str) -> dict[str, str]:
    files = {}
    for number, (name, text) in enumerate(degrees.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = name.replace("_", "-") + "\n"
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = text + "\n"
    return files


HEAT = {
    "Jetson Nano": (
        zones(AO_therm="39500", CPU_therm="31000", GPU_therm="30500", PLL_therm="29000", PMIC_Die="100000"),
        (39.5, "AO-therm"),
    ),
    "Jetson Orin, its GPU asleep": (
        zones(cpu_thermal="47400", gpu_thermal="", soc0_thermal="46000", tj_thermal="47500", cv0_thermal="-256000"),
        (47.5, "tj-thermal"),
    ),
    "Raspberry Pi": (zones(cpu_thermal="61835"), (61.835, "cpu-thermal")),
    "laptop": (zones(INT3400_Thermal="20000", iwlwifi_1="90000", x86_pkg_temp="71000"), None),
    "AMD desktop": (
        {"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": "80000"}
        | {"sys/class/hwmon/hwmon2/name": "k10temp", "sys/class/hwmon/hwmon2/temp1_input": "55125"},
        (55.125, "k10temp"),
    ),
}


@pytest.mark.parametrize("machine", HEAT)
def test_the_hottest_sensor_of_the_processor_counts_and_no_other(tmp_path: Path, machine: str) -> None:
    files, expected = HEAT[machine]
    said = HeatSensor(write(tmp_path, files)).read()
    assert (said.values["temperature_c"], said.zone) == (expected or (71, "x86-pkg-temp"))


def test_an_owner_can_name_the_zones_that_count(tmp_path: Path) -> None:
    write(tmp_path, zones(CPU_therm="31000", GPU_therm="80500"))
    assert HeatSensor(tmp_path, ("cpu*",)).read().values == {"temperature_c": 31}
    with pytest.raises(SensorFailedError, match="tpu"):
        HeatSensor(tmp_path, ("tpu*",)).read()


def test_a_machine_without_a_thermometer_says_so_and_one_that_broke_too(tmp_path: Path) -> None:
    assert "no temperature sensor" in HeatSensor(tmp_path).read().missing
    write(tmp_path, zones(cpu_thermal=""))
    with pytest.raises(SensorFailedError, match="cpu-thermal"):
        HeatSensor(tmp_path).read()


def test_a_zone_that_comes_later_is_found(tmp_path: Path) -> None:
    sensor = HeatSensor(write(tmp_path, zones(cpu_thermal="40000")))
    sensor.read()
    write(tmp_path, zones(cpu_thermal="40000", gpu_thermal="60000"))
    assert max(sensor.read().values["temperature_c"] for _ in range(60)) == 60


def test_they_keep_their_promises_on_this_machine() -> None:
    for sensor in (SupplySensor(Path("/")), PiSensor(Path("/")), HeatSensor(Path("/")), PsutilSupplySensor()):
        check_sensor(sensor)
