from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.io.blocking import open_dbus_connection

from agent.device.sensors.bus import Bus, session_bus
from agent.device.sensors.network import MeteredSensor
from agent.device.sensors.owner import LoginSensor, MutterSensor, TerminalSensor
from agent.device.sensors.screens import MacSensor, WindowsSensor, X11Sensor
from agent.device.sensors.sensor import SensorFailedError
from agent.testing import check_sensor

Answers = dict[str, tuple[str, tuple[Any, ...]]]
"""What a service answers by method and the words it is asked with: a signature and values."""


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# Terminals


def terminal(root: Path, name: str, at: float) -> Path:
    path = root / "dev" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (at, at))
    return path


def test_input_at_any_terminal_counts_from_the_moment_it_is_seen(tmp_path: Path) -> None:
    clock, wall = Clock(), Clock(50_000)
    terminal(tmp_path, "tty1", 40_000)
    shell = terminal(tmp_path, "pts/3", 49_400)
    terminal(tmp_path, "ttyS0", 50_000)
    sensor = TerminalSensor(tmp_path, monotonic=clock, wall=wall)
    assert sensor.read().values == {"idle_seconds": 600}
    clock.now += 1
    os.utime(shell, (49_993, 0))  # the kernel's times lag by up to eight seconds
    assert sensor.read().values == {"idle_seconds": 0}
    clock.now += 20
    assert sensor.read().values == {"idle_seconds": 20}


def test_a_clock_on_the_wall_that_jumps_is_no_input(tmp_path: Path) -> None:
    clock, wall = Clock(), Clock(50_000)
    shell = terminal(tmp_path, "pts/0", 49_000)
    sensor = TerminalSensor(tmp_path, monotonic=clock, wall=wall)
    sensor.read()
    wall.now, clock.now = 10_000, clock.now + 5
    assert sensor.read().values == {"idle_seconds": 1005}
    os.utime(shell, (10_001, 0))
    assert sensor.read().values == {"idle_seconds": 0}


def test_a_real_terminal_that_is_typed_into_is_noticed(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    name = os.ttyname(follower)
    try:
        os.utime(name, (0, 0))
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/pts").symlink_to("/dev/pts")
        before = Path(name).stat().st_atime
        os.write(leader, b"hello\n")
        assert os.read(follower, 100) == b"hello\n"
        assert Path(name).stat().st_atime > before
        assert TerminalSensor(tmp_path).read().values["idle_seconds"] < 60
    finally:
        os.close(leader)
        os.close(follower)


def test_a_machine_without_terminals_says_so(tmp_path: Path) -> None:
    assert "no terminal" in TerminalSensor(tmp_path).read().missing


# Desktops and NetworkManager, over a real bus


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A message bus of its own."""
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        pytest.skip("dbus-daemon is not installed")
    command = [daemon, "--session", "--nofork", "--nosyslog", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@contextlib.contextmanager
def service(address: str, name: str, answers: Answers) -> Iterator[None]:
    """Answer calls as a service of this name would."""
    connection = open_dbus_connection(address)
    from jeepney.bus_messages import message_bus  # noqa: PLC0415 (only here)

    connection.send_and_get_reply(message_bus.RequestName(name))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                message = connection.receive(timeout=0.05)
            except TimeoutError:
                continue
            if message.header.message_type is not MessageType.method_call:
                continue
            path = message.header.fields[HeaderFields.path]
            asked = ".".join([path, message.header.fields[HeaderFields.member], *map(str, message.body)])
            signature, values = answers.get(asked, ("", ()))
            reply = new_method_return(message, signature, values) if signature else new_error(message, "no.such.Thing")
            connection.send(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        connection.close()


def metered(value: int) -> Answers:
    name = "org.freedesktop.NetworkManager"
    return {f"/org/freedesktop/NetworkManager.Get.{name}.Metered": ("v", (("u", value),))}


@pytest.mark.parametrize(("value", "expected"), [(1, True), (3, True), (2, False), (4, False), (0, None)])
def test_networkmanager_tells_whether_the_network_is_metered(
    address: str, value: int, *, expected: bool | None
) -> None:
    with service(address, "org.freedesktop.NetworkManager", metered(value)):
        sensor = MeteredSensor(Bus(address))
        said = sensor.read()
        sensor.close()
    assert said.values.get("metered") is expected
    assert bool(said.missing) == (expected is None)


def test_without_networkmanager_nobody_knows_and_the_reason_is_given(address: str) -> None:
    with (
        contextlib.closing(MeteredSensor(Bus(address))) as sensor,
        pytest.raises(SensorFailedError, match=r"only NetworkManager .* is not running"),
    ):
        sensor.read()


def test_a_bus_that_is_not_there_is_a_failure_and_one_that_comes_back_is_used_again(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(SensorFailedError, match="cannot be reached"):
        Bus(f"unix:path={tmp_path}/none").get("a.b", "/", "a.b", "c")
    bus = Bus(address)
    for value in (1, 2):
        with service(address, "org.freedesktop.NetworkManager", metered(value)):
            assert MeteredSensor(bus).read().values == {"metered": value == 1}
        bus.close()


def logind(session: dict[str, tuple[str, Any]]) -> Answers:
    path = "/org/freedesktop/login1/session/_32"
    return {
        "/org/freedesktop/login1.ListSessions": ("a(susso)", ([("2", 1000, "ada", "seat0", path)],)),
        f"{path}.GetAll.org.freedesktop.login1.Session": ("a{sv}", (session,)),
    }


DESKTOP = {"Type": ("s", "wayland"), "Class": ("s", "user")}


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ({"IdleHint": ("b", True), "IdleSinceHint": ("t", 49_700_000_000)}, 300.0),
        ({"IdleHint": ("b", False), "IdleSinceHint": ("t", 49_700_000_000)}, 0.0),
        ({"IdleHint": ("b", False), "IdleSinceHint": ("t", 0)}, None),
    ],
)
def test_a_desktops_hint_counts_once_it_has_ever_given_one(
    address: str, hints: dict[str, tuple[str, Any]], expected: float | None
) -> None:
    with service(address, "org.freedesktop.login1", logind({**DESKTOP, **hints})):
        sensor = LoginSensor(Bus(address), monotonic=Clock(), wall=Clock(50_000))
        said = sensor.read()
        sensor.close()
    assert said.values.get("idle_seconds") == expected
    assert (expected is None) == ("no desktop tells" in said.missing)


def test_sessions_without_a_desktop_and_login_screens_are_nobodys_hint(address: str) -> None:
    hint = {"IdleHint": ("b", False), "IdleSinceHint": ("t", 1)}
    for kind in ({"Type": ("s", "tty"), "Class": ("s", "user")}, {"Type": ("s", "x11"), "Class": ("s", "greeter")}):
        with service(address, "org.freedesktop.login1", logind({**kind, **hint})):
            sensor = LoginSensor(Bus(address), monotonic=Clock(), wall=Clock())
            assert "nobody has a desktop" in sensor.read().missing
            sensor.close()


def test_gnome_counts_milliseconds(address: str) -> None:
    answers: Answers = {"/org/gnome/Mutter/IdleMonitor/Core.GetIdletime": ("t", (12_345,))}
    with service(address, "org.gnome.Mutter.IdleMonitor", answers):
        sensor = MutterSensor(Bus(address))
        assert sensor.read().values == {"idle_seconds": 12.345}
        sensor.close()


def test_a_users_bus_is_where_systemd_puts_it(tmp_path: Path) -> None:
    assert not session_bus(tmp_path, 1000)
    (tmp_path / "run/user/1000").mkdir(parents=True)
    (tmp_path / "run/user/1000/bus").touch()
    assert session_bus(tmp_path, 1000) == f"unix:path={tmp_path}/run/user/1000/bus"


# X11, by a real server


@pytest.fixture
def server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """An X server without a screen."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    command = [program, "-displayfd", str(write), "-nolisten", "tcp", "-screen", "0", "64x64x8"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, pass_fds=(write,)) as process:
        os.close(write)
        with os.fdopen(read) as pipe:
            display = pipe.readline().strip()
        yield f":{display}", process
        process.terminate()


def test_x_counts_the_time_since_the_last_input_and_may_end_without_ending_this_process(
    server: tuple[str, subprocess.Popen[str]],
) -> None:
    display, process = server
    sensor = X11Sensor(display)
    first = sensor.read().values["idle_seconds"]
    assert 0 <= first < 600
    assert sensor.read().values["idle_seconds"] >= first
    process.terminate()
    process.wait()
    with pytest.raises(SensorFailedError, match="has ended"):
        sensor.read()
    sensor.close()


@pytest.mark.parametrize("make", [MacSensor, WindowsSensor, lambda: X11Sensor(""), lambda: X11Sensor(":987")])
def test_where_there_is_no_such_screen_it_is_a_failure_with_its_reason(make: Callable[[], MacSensor]) -> None:
    with pytest.raises(SensorFailedError, match=r"\w"):
        make().read()


def test_they_keep_their_promises_on_this_machine(address: str) -> None:
    for sensor in (
        TerminalSensor(Path("/")),
        LoginSensor(Bus(address)),
        MutterSensor(Bus(address)),
        MeteredSensor(Bus(address)),
        MacSensor(),
        WindowsSensor(),
        X11Sensor(":987"),
    ):
        check_sensor(sensor)
