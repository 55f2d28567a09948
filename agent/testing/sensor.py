"""The kit for sensors."""

from __future__ import annotations

from agent.device.readings import FLAGS, QUANTITIES, checked
from agent.device.sensors.sensor import Measured, Sensor, SensorFailedError
from agent.testing.promises import BrokenPromiseError, promise


def check_sensor(sensor: Sensor, *, reads: int = 3) -> None:
    """Check what every sensor promises, on the machine that this runs on; it may fail, but only as sensors do.

    Args:
        sensor: one that was not read yet; it is closed in the end.
        reads: how often it is read.

    Raises:
        BrokenPromiseError: the first promise that is broken.
    """
    promise(isinstance(sensor, Sensor), "a sensor has name, period, gives, read() and close()")
    promise(bool(sensor.name) and sensor.name.isprintable(), "a sensor has a name that can be shown")
    promise(sensor.period >= 1, "a sensor is asked once a second at most")
    unknown = sensor.gives - set(QUANTITIES)
    promise(not unknown, f"a sensor gives readings that there are (not {', '.join(sorted(unknown))})")
    for _ in range(reads):
        try:
            _check_said(sensor, sensor.read())
        except SensorFailedError as cause:
            promise(bool(str(cause)), "a sensor that fails says why")
        except BrokenPromiseError:
            raise
        except Exception as cause:
            raise BrokenPromiseError(
                f"broken promise: a sensor fails with SensorFailedError alone (raised {type(cause).__name__}: {cause})"
            ) from cause
    try:
        sensor.close()
        sensor.close()
    except Exception as cause:
        raise BrokenPromiseError(f"broken promise: a sensor can be closed twice ({cause})") from cause


def _check_said(sensor: Sensor, said: object) -> None:
    promise(isinstance(said, Measured), "read() gives a Measured")
    assert isinstance(said, Measured)
    extra = (set(said.values) | said.absent) - sensor.gives
    promise(not extra, f"a sensor gives what it says it gives (not {', '.join(sorted(extra))})")
    both = set(said.values) & said.absent
    promise(not both, f"what is absent has no value ({', '.join(sorted(both))})")
    for name, value in said.values.items():
        kind = "true or false" if name in FLAGS else "a finite number, not below zero unless a temperature"
        promise(checked(name, value) is not None, f"{name} is {kind} (not {value!r})")
    silent = sensor.gives - set(said.values) - said.absent
    promise(not silent or bool(said.missing), f"what is missing has a reason ({', '.join(sorted(silent))})")
