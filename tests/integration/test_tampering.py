"""One byte of one message of every kind is changed on its way, once before the broker and once behind it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.community import grown_release, make_community
from tests.integration.local_broker import local_broker
from tests.integration.proxy import Direction, Passed, Wiretap

pytestmark = pytest.mark.slow

HUB_SAYS = ("hub/card", "hub/charter", "hub/round", "to/offer", "to/chunk", "to/receipt", "joined")
DEVICES_SAY = ("join", "from/want", "from/offer", "from/chunk", "from/verdict")
FOR_NEWCOMERS = ("hub/card", "hub/charter", "joined")
RETAINED = ("hub/card", "hub/charter", "hub/round")


def room_and_kind(topic: str) -> str:
    """Give what a topic is for, such as ``from/offer``, without community, device or invite."""
    _root, _community, room, *rest = topic.split("/")
    return room if room in {"join", "joined"} else f"{room}/{rest[-1]}"


class Tamperer:
    """Changes one byte of the first message of each kind in each direction, and remembers what it changed."""

    def __init__(self) -> None:
        self.left: set[tuple[str, Direction]] = {
            (kind, direction) for kind in (*HUB_SAYS, *DEVICES_SAY) for direction in ("to-broker", "to-client")
        }
        self.made: list[tuple[str, Direction, int]] = []
        self._changed: set[bytes] = set()
        self._random = random.Random(20)

    def __call__(self, passed: Passed) -> bytes:
        kind = room_and_kind(passed.topic)
        if passed.payload in self._changed or (kind, passed.direction) not in self.left:
            return passed.payload
        if kind in RETAINED and passed.direction == "to-broker" and (kind, "to-client") in self.left:
            return passed.payload  # nobody listens yet
        self.left.remove((kind, passed.direction))
        payload = bytearray(passed.payload)
        place = self._random.randrange(len(payload))
        payload[place] ^= 1 << self._random.randrange(8)
        self.made.append((kind, passed.direction, place))
        self._changed.add(bytes(payload))
        return bytes(payload)


def test_one_changed_byte_in_any_message_is_refused_and_the_round_still_completes(tmp_path: Path) -> None:
    tamperer = Tamperer()
    with local_broker() as port, Wiretap(upstream=port, change=tamperer) as wire:
        community = make_community(tmp_path / "community", broker=wire.url)
        with community.hub() as hub:
            hub.wait_for("hub-ready")
            community.join_all()
            with community.device("ada") as ada, community.device("bob") as bob:
                decided = grown_release(hub, 1)
                for device in (ada, bob):
                    device.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
                refused = {
                    "hub": [room_and_kind(said["topic"]) for said in hub.all("message-refused")],
                    "devices": [
                        room_and_kind(said["topic"]) for run in (ada, bob) for said in run.all("message-refused")
                    ],
                }
    assert decided.name == "promoted"
    assert community.counted(1) == community.everybody()
    assert community.status()["refusals"] == []
    assert not tamperer.left, f"these never passed: {tamperer.left}"
    for kind in DEVICES_SAY:
        assert refused["hub"].count(kind) >= 2, (kind, refused, tamperer.made)
    for kind in set(HUB_SAYS) - set(FOR_NEWCOMERS):
        assert refused["devices"].count(kind) >= 2, (kind, refused, tamperer.made)
