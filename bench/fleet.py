"""A thousand devices, one real mosquitto, one real hub: is an update lost or counted twice, and what does the hub take?

Every device is the product's own, with keys, database, outbox, consent, files and a real MQTT link; it joins with the
one invite that all share. What is simulated: training and judging (random numbers instead of a model, which takes
milliseconds and no torch), and that each device is a machine: many share a process, and their files lie in memory
(`/dev/shm`, where there is one). Their CPU time is this machine's too, so `wall_s` is mostly theirs. The hub is
`bramble hub run`, its disk is a real one; the broker is mosquitto with the configuration that `--broker-line` adds to.

    python bench/fleet.py --json FILE [--devices 1000] [--rounds 3] [--within SECONDS]    (- for standard output)

JSON: `machine`, `devices`, `rounds` (asked for), `rounds_completed`, `updates` (counted), `updates_made` (by devices),
`updates_lost` (made, and neither counted, nor refused with a reason, nor waiting in an outbox), `updates_double`
(counted or merged more than once), `updates_refused` (by reason), `join_s`, `wall_s` (from the first device that was
told to join to the end of the last round), `hub_cpu_s`, `hub_peak_mb`, `broker_bytes` (received and sent, all in all),
`broker_cpu_s`, `devices_cpu_s`, `device_mb` (peaks of the device processes over all devices), `update_bytes` (of one,
sealed), `adapter_bytes`, and `devices_current` (how many have the last release within a minute of the end).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import math
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from agent.device.hardware import detect
from agent.governance.charter import Charter, RoundRules, TrainingPlan
from agent.hub.setup import HubPlan, create_hub, describe_base, make_invite
from agent.hub.store import open_store
from agent.paths import Home
from engines.broker import Broker, bytes_through, running_mosquitto
from engines.fleet_devices import Order
from engines.shapes import SHAPES, write_float16

DEVICES_A_PROCESS = 125
"""paho waits with select(), which knows 1,024 files; a device has six open."""

RANK = 8
_MAXRSS_A_MB = 1024 * 1024 if sys.platform == "darwin" else 1024
"""In what units a system counts ``ru_maxrss``."""

_BENCH = Path(__file__).resolve().parent


def _high_water_mb(pid: int) -> float:
    """Give the largest resident size of a process that lives, in MiB; 0 where the system does not tell.

    ``ru_maxrss`` would count this process too, whose memory a child has for the moment between fork and exec.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


@dataclass(kw_only=True)
class Process:
    """A child that says lines of JSON."""

    command: Sequence[str | Path]
    log: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    """Events by name, for a process that says such."""
    usage: Any = None
    """What it took, once it has ended: ``resource.struct_rusage``."""
    peak_mb: float = 0.0
    """Its largest resident size, once it has ended."""

    def start(self) -> None:
        """Start it."""
        path = os.pathsep.join(filter(None, (str(_BENCH.parent), os.environ.get("PYTHONPATH"))))
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=_BENCH,
                env={**os.environ, "PYTHONPATH": path},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                said = json.loads(line)
                if "event" in said:
                    self.counts[said["event"]] += 1
                else:
                    self.lines[:] = [said]

    def end(self) -> None:
        """Ask it to leave, wait, and keep what it took."""
        own = _high_water_mb(self.child.pid)
        self.child.send_signal(signal.SIGTERM)
        killer = threading.Timer(60, self.child.kill)
        killer.start()
        _pid, status, self.usage = os.wait4(self.child.pid, 0)
        self.child.returncode = os.waitstatus_to_exitcode(status)
        self.peak_mb = own or self.usage.ru_maxrss / _MAXRSS_A_MB
        killer.cancel()
        self._reader.join(10)
        if self.child.stdout is not None:
            self.child.stdout.close()

    def require(self) -> None:
        """Say so where it has ended.

        Raises:
            RuntimeError: it has; its last words are in the message.
        """
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.log.stem} has ended: {self.log.read_text()[-2000:]}")

    @property
    def said(self) -> dict[str, Any]:
        """Its last line."""
        return self.lines[-1] if self.lines else {}


def make_hub(home: Home, *, base: Path, broker: Broker, devices: int, rounds: int, within: float) -> str:
    """Make a hub that wants an update of every device in every round; give an invite for all of them."""
    charter = Charter(
        name="A fleet",
        rank=RANK,
        alpha=2.0 * RANK,
        training=TrainingPlan(steps=1, batch_size=1, window=64),
        rounds=RoundRules(quorum=devices, target=devices, collect_seconds=within, trial_seconds=within),
        **describe_base(base),
    )
    create_hub(home, HubPlan(name=charter.name, base=base, broker=broker.url, last_round=rounds, charter=charter))
    return make_invite(home, uses=devices, expires_seconds=86_400).encode()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the databases say in the end."""

    rounds_completed: int
    updates: int
    updates_made: int
    updates_lost: int
    updates_double: int
    updates_refused: dict[str, int]
    update_bytes: int
    adapter_bytes: int


def count(hub: Home, homes: Sequence[Path]) -> Counts:
    """Hold what every device made against what the hub counted, refused and merged."""
    with open_store(hub) as store:
        updates, releases, refusals = store.updates(), store.releases(), store.refusals()
        outcomes = [row["outcome"] for row in store.round_rows()]
        config = store.config
    counted = collections.Counter(row.transfer for row in updates)
    places = collections.Counter((row.round, row.device) for row in updates)
    merged = collections.Counter(update for release in releases for update in release.updates)
    refused = {str(row["transfer"]): str(row["reason"]) for row in refusals}
    made: set[str] = set()
    waiting: set[str] = set()
    for root in homes:
        with contextlib.closing(sqlite3.connect(Home(root).database)) as device:
            made |= {str(row[0]) for row in device.execute("SELECT transfer FROM rounds")}
            waiting |= {str(row[0]) for row in device.execute("SELECT transfer FROM outbox WHERE kind = 'offer'")}
    double = sum(times - 1 for counter in (counted, places, merged) for times in counter.values())
    return Counts(
        rounds_completed=sum(outcome in {"promoted", "rejected"} for outcome in outcomes[: config.last_round]),
        updates=len(updates),
        updates_made=len(made),
        updates_lost=len(made - counted.keys() - refused.keys() - waiting),
        updates_double=double,
        updates_refused=dict(collections.Counter(refused[transfer] for transfer in made & refused.keys())),
        update_bytes=max((row.wire_bytes for row in updates), default=0),
        adapter_bytes=releases[-1].manifest.size,
    )


class Bench:
    """One fleet, from the first join to the last round."""

    def __init__(self, options: argparse.Namespace, *, disk: Path, memory: Path) -> None:
        self._options = options
        self._hub_home = Home(disk / "hub")
        self._disk = disk
        self._memory = memory
        self._homes = [memory / f"device-{number:04}" for number in range(options.devices)]

    def run(self) -> dict[str, Any]:
        """Run it, and give the report."""
        options = self._options
        base = self._disk / "base.gguf"
        write_float16(replace(SHAPES["tiny"], layers=1, vocab=512), base)
        with running_mosquitto(self._disk, *options.broker_line) as broker:
            invite = make_hub(
                self._hub_home,
                base=base,
                broker=broker,
                devices=options.devices,
                rounds=options.rounds,
                within=options.within,
            )
            hub = Process(
                command=("-m", "agent.cli", "hub", "run", "--home", self._hub_home.root, "--events-json"),
                log=self._disk / "hub.log",
            )
            hub.start()
            while not hub.counts["hub-ready"]:
                hub.require()
                time.sleep(0.1)
            fleet = [self._devices(number, invite, base) for number in range(self._processes)]
            try:
                times = self._watch(hub, fleet)
                broker_bytes = asyncio.run(bytes_through(broker))
                used = psutil.Process(broker.pid).cpu_times()
            finally:
                for process in (*fleet, hub):
                    process.end()
        counts, hardware = count(self._hub_home, self._homes), detect()
        return {
            "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "system": platform.platform()},
            "devices": options.devices,
            "rounds": options.rounds,
            **vars(counts),
            **times,
            "hub_cpu_s": round(hub.usage.ru_utime + hub.usage.ru_stime, 1),
            "hub_peak_mb": round(hub.peak_mb, 1),
            "broker_bytes": broker_bytes,
            "broker_cpu_s": round(used.user + used.system, 1),
            "devices_cpu_s": round(sum(process.usage.ru_utime + process.usage.ru_stime for process in fleet), 1),
            "device_mb": round(sum(process.peak_mb for process in fleet) / options.devices, 2),
        }

    @property
    def _processes(self) -> int:
        return math.ceil(len(self._homes) / DEVICES_A_PROCESS)

    def _devices(self, number: int, invite: str, base: Path) -> Process:
        """Start one process of devices."""
        order = Order(
            homes=tuple(self._homes[number :: self._processes]),
            invite=invite,
            base=base,
            release=self._options.rounds,
        )
        path = self._disk / f"order-{number}.json"
        path.write_text(order.model_dump_json())
        process = Process(command=("-m", "engines.fleet_devices", path), log=self._disk / f"devices-{number}.log")
        process.start()
        return process

    def _watch(self, hub: Process, fleet: Sequence[Process]) -> dict[str, float]:
        """Wait until the community has closed and every device has its last release; tell how far it is."""
        began, join_s, closed_s = time.monotonic(), 0.0, 0.0
        last = ""
        while True:
            passed = time.monotonic() - began
            for process in (hub, *fleet):
                process.require()
            joined = sum(int(process.said.get("joined", 0)) for process in fleet)
            current = sum(int(process.said.get("current", 0)) for process in fleet)
            if joined == self._options.devices and not join_s:
                join_s = passed
            if hub.counts["closed"] and not closed_s:
                closed_s = passed
            if closed_s and (current == self._options.devices or passed > closed_s + 60):
                return {"join_s": round(join_s, 1), "wall_s": round(closed_s, 1), "devices_current": current}
            if passed > self._options.within:
                say(f"given up after {passed:.0f} s")
                return {"join_s": round(join_s, 1), "wall_s": round(passed, 1), "devices_current": current}
            names = ("device-joined", "update-accepted", "verdict", "merged", "promoted", "rejected")
            words = ", ".join(f"{name} {hub.counts[name]}" for name in names) + f", current {current}"
            if words != last and int(passed) % 5 == 0:
                say(f"{passed:5.0f} s  {words}")
                last = words
            time.sleep(0.5)


def say(what: str) -> None:
    """Tell whoever waits how far the bench is."""
    print(time.strftime("%H:%M:%S ") + what, file=sys.stderr, flush=True)


@contextlib.contextmanager
def rooms(work: Path | None) -> Iterator[tuple[Path, Path]]:
    """Give a directory on the disk and one in memory, where there is such."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="bramble-fleet-", dir=work) as disk,
        tempfile.TemporaryDirectory(prefix="bramble-fleet-", dir=memory if memory.is_dir() else work) as devices,
    ):
        yield Path(disk), Path(devices)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--within", type=float, default=1800.0, help="seconds after which it is given up")
    parser.add_argument("--broker-line", action="append", default=[], help="one more line of mosquitto's configuration")
    parser.add_argument("--work", type=Path, help="where the hub's disk is, if not in the temporary directory")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the fleet."""
    options = parse(arguments)
    with rooms(options.work) as (disk, memory):
        report = Bench(options, disk=disk, memory=memory).run()
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text) if options.json == "-" else Path(options.json).write_text(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("stopped"))  # ends what it has started
    main()
