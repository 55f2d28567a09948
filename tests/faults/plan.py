"""What goes wrong in one run: a pure function of its seed.

Whatever can be said in counts is: the Nth message of a client, the Nth byte, the Nth write to the disk. So the same
seed gives the same faults at very nearly the same instants, on any machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Direction: TypeAlias = Literal["to-broker", "to-client"]
Kind: TypeAlias = Literal[
    "cut",
    "stall",
    "delay",
    "drop",
    "lose",
    "duplicate",
    "reorder",
    "corrupt",
    "garble",
    "kill-at-write",
    "kill-at-event",
    "kill-broker",
    "kill-worker",
    "full-disk",
    "clock",
]

WIRE: tuple[Kind, ...] = ("cut", "stall", "delay", "drop", "lose", "duplicate", "reorder", "corrupt", "garble")
WITHIN: tuple[Kind, ...] = ("kill-at-write", "full-disk", "clock")
KINDS: tuple[Kind, ...] = (*WIRE, *WITHIN, "kill-at-event", "kill-broker", "kill-worker")

HUB, BROKER = "hub", "broker"
EVERY_REAL = 50
"""One seed in so many has real workers on the seedling."""

HOUR, YEAR = 3600.0, 365.25 * 86_400
CLOCKS = (-100 * YEAR, -5 * YEAR, -30 * 86_400.0, -HOUR, HOUR, 30 * 86_400.0, 10 * YEAR)
"""By how many seconds a clock is wrong; 1970 is as far back as it goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: ``cut`` (the connection breaks after byte ``at``), ``stall`` (it says nothing for ``seconds``, then
            breaks), ``delay`` (it says nothing for ``seconds``), ``drop`` (a message is acknowledged and forgotten),
            ``lose`` (it is forgotten), ``duplicate``, ``reorder`` (it comes after ``extra`` others), ``corrupt`` (a
            byte of its payload is changed), ``garble`` (any byte of its packet is); ``kill-at-write`` and ``full-disk``
            (at the Nth write of a process; the disk is full for ``seconds``), ``clock`` (from the Nth write on it is
            wrong by ``seconds``), ``kill-at-event`` (after a process has said so many things, and ``seconds``),
            ``kill-broker`` (after everybody together has said so many things; it is away for ``seconds``),
            ``kill-worker`` (``seconds`` after the Nth worker of a device has started: the first one trains).
        who: ``hub``, ``broker``, or a device.
        at: which byte, message of this direction, write, event or worker; from 1.
        direction: of a fault on the wire.
        seconds: how long, or by how much.
        extra: which byte and bit is changed, as a large number; how many messages overtake.
    """

    kind: Kind
    who: str
    at: int
    direction: Direction = "to-broker"
    seconds: float = 0.0
    extra: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Attributes:
        devices: their names.
        quorum: updates that a round needs at least; its target is all devices.
        persistence: the broker keeps its sessions on the disk.
        protocol: of MQTT, as ``BRAMBLE_MQTT_PROTOCOL`` has it.
        rank: of the adapter; how many chunks a transfer has.
        work_seconds: how long a synthetic worker takes.
        quarrel: how far judgements differ: some candidates are rejected.
        real_workers: the workers train the seedling.
    """

    seed: int
    devices: tuple[str, ...]
    quorum: int
    rounds: int
    persistence: bool
    protocol: str
    rank: int
    work_seconds: float
    quarrel: float
    real_workers: bool
    faults: tuple[Fault, ...]

    def of(self, who: str, *kinds: Kind) -> tuple[Fault, ...]:
        """Give somebody's faults of these kinds, in order."""
        return tuple(fault for fault in self.faults if fault.who == who and fault.kind in kinds)

    def as_dict(self) -> dict[str, Any]:
        """Give it for a report."""
        return asdict(self)


def make_plan(seed: int) -> Plan:
    """Draw a run from its seed."""
    draw = random.Random(seed)
    real = seed % EVERY_REAL == EVERY_REAL - 1
    count = 2 if real else draw.choice((2, 2, 3, 3, 4))
    devices = tuple(f"device-{number}" for number in range(count))
    rounds = 1 if real else draw.choice((1, 2, 2, 3))
    kinds: list[Kind] = ["kill-worker"] if real else []
    kinds += draw.choices([kind for kind in KINDS if kind != "kill-worker"], k=draw.randint(1, 5))
    return Plan(
        seed=seed,
        devices=devices,
        quorum=max(1, count - draw.choice((0, 0, 1))),
        rounds=rounds,
        persistence=draw.random() < 0.5,
        protocol=draw.choice(("5", "3.1.1")),
        rank=8 if real else draw.choice((4, 32, 64)),
        work_seconds=draw.choice((0.0, 0.05, 0.2)),
        quarrel=draw.choice((0.0, 0.0, 0.0, 0.5)),
        real_workers=real,
        faults=tuple(_fault(kind, draw, devices) for kind in kinds),
    )


def _fault(kind: Kind, draw: random.Random, devices: tuple[str, ...]) -> Fault:
    """Draw one fault: mostly early, where something happens."""
    device = draw.choice(devices)
    client = draw.choice((HUB, device))
    direction: Direction = draw.choice(("to-broker", "to-client"))
    message = _early(draw, 30)
    known: dict[Kind, Callable[[], Fault]] = {
        "cut": lambda: Fault(
            kind=kind, who=client, direction=direction, at=_early(draw, draw.choice((400, 20_000, 400_000)))
        ),
        "kill-at-write": lambda: Fault(kind=kind, who=client, at=_early(draw, 120)),
        "full-disk": lambda: Fault(
            kind=kind, who=client, at=_early(draw, 120), seconds=draw.uniform(0.1, 2.0), extra=draw.getrandbits(20)
        ),
        "clock": lambda: Fault(kind=kind, who=client, at=_early(draw, 60), seconds=draw.choice(CLOCKS)),
        "kill-at-event": lambda: Fault(kind=kind, who=client, at=_early(draw, 20), seconds=draw.uniform(0, 0.1)),
        "kill-broker": lambda: Fault(kind=kind, who=BROKER, at=_early(draw, 60), seconds=draw.uniform(0.05, 1.5)),
        "kill-worker": lambda: Fault(kind=kind, who=device, at=draw.randint(1, 3), seconds=draw.uniform(0, 1.5)),
    }
    if kind in known:
        return known[kind]()
    seconds = draw.uniform(0.1, 2.0) if kind in {"stall", "delay"} else 0.0
    extra = draw.randint(1, 4) if kind == "reorder" else draw.getrandbits(30)
    return Fault(kind=kind, who=client, direction=direction, at=message, seconds=seconds, extra=extra)


def _early(draw: random.Random, most: int) -> int:
    """Draw from 1 to about ``most``: smaller numbers more often."""
    return 1 + int(most * draw.random() ** 2)
