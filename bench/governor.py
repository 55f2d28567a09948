"""What the governor and its sensors cost, asked once a second as a daemon asks them. There is no peer to ask alike.

    python bench/governor.py --json FILE [--seconds 60]    (- for standard output)

JSON: `machine`, `seconds`, `cpu_percent` (of one core, this process, from the second look on), `update_us` (the
governor's part of a look), `dbus_call_us` (a question and its answer over a bus of its own, where dbus-daemon is
installed; else null), `sensor_ms` (the last look of each sensor, wall clock), `sensors_failed`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from agent.device.governor import Governor
from agent.device.hardware import detect
from agent.device.sensors.bus import Bus
from agent.device.sensors.sensor import Place
from agent.device.sensors.watch import Watch, sensors_of
from agent.thresholds import GovernorSettings

CALLS = 1000
BUS = "org.freedesktop.DBus"


def measure(seconds: int) -> dict[str, object]:
    """Look once a second for so long."""
    governor = Governor(GovernorSettings.model_validate({"hours": {"quiet": ["mon-fri 09:00-17:00"]}}))
    with tempfile.TemporaryDirectory() as home, Watch(sensors_of(Place(home=Path(home)))) as watch:
        readings = watch.read()
        cpu, wall = time.process_time(), time.monotonic()
        for number in range(seconds):
            time.sleep(max(0.0, wall + number + 1 - time.monotonic()))
            readings = watch.read()
            governor.update(readings, monotonic=time.monotonic(), wall=datetime.now())  # noqa: DTZ005
        percent = 100 * (time.process_time() - cpu) / (time.monotonic() - wall)
        now, begun = datetime.now(), time.process_time()  # noqa: DTZ005
        for _ in range(CALLS):
            governor.update(readings, monotonic=wall, wall=now)
        update = (time.process_time() - begun) / CALLS
        reports = watch.reports
    hardware = detect()
    return {
        "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "memory_mb": hardware.memory_mb},
        "seconds": seconds,
        "cpu_percent": round(percent, 3),
        "update_us": round(1e6 * update, 1),
        "dbus_call_us": dbus_call_us(),
        "sensor_ms": {report.name: round(1e3 * report.cost, 3) for report in reports},
        "sensors_failed": [report.name for report in reports if report.failed],
    }


def dbus_call_us() -> float | None:
    """Measure a question over a bus of its own; processor time of this side."""
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        return None
    command = [daemon, "--session", "--nofork", "--nosyslog", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        bus = Bus(process.stdout.readline().strip())
        bus.call(BUS, "/org/freedesktop/DBus", BUS, "GetId")
        begun = time.process_time()
        for _ in range(CALLS):
            bus.call(BUS, "/org/freedesktop/DBus", BUS, "GetId")
        passed = time.process_time() - begun
        bus.close()
        process.terminate()
    return round(1e6 * passed / CALLS, 1)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", required=True)
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.seconds), indent=2)
    if arguments.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
