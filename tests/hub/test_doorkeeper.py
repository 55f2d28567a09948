"""What the doorkeeper lets in, and why not the rest; nobody pays for what others sign."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from agent.crypto.envelope import MAX_BYTES, Envelope, sign
from agent.crypto.identity import Identity
from agent.crypto.replay import ReplayWindow
from agent.errors import ProtocolError
from agent.hub.doorkeeper import FUTURE_SECONDS, Doorkeeper, Request
from agent.hub.limits import (
    ASKS_AT_ONCE,
    BURST_BYTES,
    INVITES_AT_HAND,
    JOINS_AT_ONCE,
    MESSAGES_AT_ONCE,
    UPDATES_AT_ONCE,
    Allowances,
)
from agent.transport.link import Message
from agent.transport.topics import Topics
from agent.transport.transfer import CHUNK_BYTES

COMMUNITY = bytes(range(16))
NOW = 1_700_000_000.0
ADA, BOB, EVE = (Identity.generate() for _ in range(3))


@dataclass
class Door:
    now: float = NOW
    ticks: float = 0.0
    counter: int = 10_000
    windows: dict[str, ReplayWindow] = field(default_factory=lambda: {who.id: ReplayWindow() for who in (ADA, BOB)})

    def __post_init__(self) -> None:
        self.topics = Topics(COMMUNITY.hex())
        self.keeper = Doorkeeper(
            topics=self.topics,
            known={who.id: who.public for who in (ADA, BOB)},
            windows=self.windows,
            allowances=Allowances(adapter_bytes=1000, clock=lambda: self.ticks),
            clock=lambda: self.now,
        )

    def message(self, who: Identity, kind: str = "want", *, topic: str = "", **fields: object) -> Message:
        """Give a message as the hub gets it; any field may be another than it should be."""
        self.counter += 1
        said = {
            "kind": kind,
            "community": COMMUNITY,
            "counter": self.counter,
            "time": int(NOW * 1000),
            "body": b"body",
            **fields,
        }
        payload = sign(who, **said)  # type: ignore[arg-type]
        return Message(topic or self.topics.from_(who.id, kind), payload, retained=False, _acknowledge=lambda: None)

    def code(self, message: Message) -> str:
        """Give why a message is refused; nothing where it is not."""
        try:
            self.keeper.look(message)
        except ProtocolError as error:
            return error.code
        return ""


@pytest.fixture
def door() -> Door:
    return Door()


def test_member_is_let_in_with_every_kind_that_a_hub_knows(door: Door) -> None:
    for kind in ("offer", "chunk", "want", "verdict"):
        found = door.keeper.look(door.message(ADA, kind))
        assert isinstance(found, Envelope)
        assert (found.sender, found.kind, found.body) == (ADA.id, kind, b"body")


@pytest.mark.parametrize(
    ("code", "who", "fields"),
    [
        ("wrong-community", ADA, {"community": bytes(16)}),
        ("unknown-sender", EVE, {}),
        ("wrong-kind", ADA, {"kind": "offer", "topic": "want"}),
        ("wrong-kind", ADA, {"kind": "gossip", "topic": "gossip"}),
        ("future", ADA, {"time": int((NOW + FUTURE_SECONDS + 1) * 1000)}),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(
    door: Door, code: str, who: Identity, fields: dict[str, str]
) -> None:
    kind = fields.pop("topic", "want")
    assert door.code(door.message(who, topic=door.topics.from_(who.id, kind), **fields)) == code


def test_bytes_that_are_no_envelope_or_too_many_are_refused(door: Door) -> None:
    topic = door.topics.from_(ADA.id, "want")
    for payload, code in ((b"junk", "malformed"), (bytes(MAX_BYTES + 1), "oversized")):
        assert door.code(Message(topic, payload, retained=False, _acknowledge=lambda: None)) == code
    good = door.message(ADA)
    assert door.code(dataclasses.replace(good, topic="elsewhere/entirely")) == "malformed"
    assert door.code(dataclasses.replace(good, topic=door.topics.from_(BOB.id, "want"))) == "unknown-sender"


def test_the_past_is_never_refused_so_a_machine_without_a_clock_takes_part(door: Door) -> None:
    assert door.code(door.message(ADA, time=0)) == ""
    assert door.code(door.message(ADA, time=int((NOW + FUTURE_SECONDS) * 1000))) == ""


def test_message_is_let_in_once(door: Door) -> None:
    message = door.message(ADA)
    assert door.code(message) == ""
    assert door.code(message) == "replayed"
    newest = door.message(ADA, counter=10**9)
    assert door.code(newest) == ""
    assert door.code(door.message(ADA)) == "replayed"  # too old to be remembered


def test_message_that_is_refused_is_not_remembered_as_seen(door: Door) -> None:
    early = door.message(ADA, time=int((NOW + 2 * FUTURE_SECONDS) * 1000))
    assert door.code(early) == "future"
    door.now += 2 * FUTURE_SECONDS
    assert door.code(early) == ""


def test_a_burst_beyond_the_allowance_is_dropped_and_others_are_not_touched(door: Door) -> None:
    codes = [door.code(door.message(ADA)) for _ in range(ASKS_AT_ONCE + 5)]
    assert codes == [""] * ASKS_AT_ONCE + ["rate"] * 5
    assert door.code(door.message(BOB)) == ""
    door.ticks += 60.0
    assert door.code(door.message(ADA)) == ""


def test_all_chunks_of_as_many_updates_as_a_hub_keeps_fit_into_one_burst(door: Door) -> None:
    """The most that an honest device sends at once: everything that it may have open, after a break."""
    chunks = BURST_BYTES // (CHUNK_BYTES + 500)
    body = bytes(CHUNK_BYTES)
    assert {door.code(door.message(ADA, "chunk", body=body)) for _ in range(chunks)} == {""}
    large = Allowances(adapter_bytes=100 * CHUNK_BYTES, clock=lambda: 0.0)
    assert all(large.take(ADA.id, "chunk", CHUNK_BYTES + 500) for _ in range(100 * UPDATES_AT_ONCE))


def test_flood_is_dropped_before_its_signatures_are_checked(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    body = bytes(CHUNK_BYTES)
    flood = [door.message(ADA, "chunk", body=body) for _ in range(BURST_BYTES // CHUNK_BYTES + 50)]
    for message in flood[:-10]:
        door.code(message)
    checked: list[int] = []
    monkeypatch.setattr("agent.hub.doorkeeper.verify", lambda *_arguments: checked.append(1))
    monkeypatch.setattr("agent.hub.doorkeeper.parse", lambda *_arguments: checked.append(1))
    assert {door.code(message) for message in flood[-10:]} == {"rate"}
    assert checked == []


def test_junk_that_names_a_device_costs_that_device_nothing(door: Door) -> None:
    """Forged, replayed and moved messages by the thousand: not one is taken from the allowance of who is named."""
    heard = door.message(ADA)
    assert door.code(heard) == ""
    forged = door.message(ADA)
    forged = dataclasses.replace(forged, payload=forged.payload[:-1] + bytes([forged.payload[-1] ^ 1]))
    topic = door.topics.from_(ADA.id, "want")
    for _ in range(MESSAGES_AT_ONCE + 500):
        assert door.code(forged) == "bad-signature"
        assert door.code(heard) == "replayed"
        assert door.code(Message(topic, b"junk", retained=False, _acknowledge=lambda: None)) == "malformed"
    assert [door.code(door.message(ADA)) for _ in range(ASKS_AT_ONCE - 1)] == [""] * (ASKS_AT_ONCE - 1)


def test_newcomers_are_counted_by_invite(door: Door) -> None:
    def ask(invite: str) -> str:
        return door.code(door.message(EVE, "join", topic=door.topics.join(invite, EVE.id)))

    assert isinstance(door.keeper.look(door.message(EVE, "join", topic=door.topics.join("00", EVE.id))), Request)
    assert [ask("00") for _ in range(JOINS_AT_ONCE)] == [""] * (JOINS_AT_ONCE - 1) + ["rate"]
    assert ask("01") == ""
    assert door.code(door.message(EVE, "want", topic=door.topics.join("02", EVE.id))) == "wrong-kind"


def test_what_is_remembered_of_invites_is_bounded() -> None:
    allowances = Allowances(adapter_bytes=1000, clock=lambda: 0.0)
    for number in range(3 * INVITES_AT_HAND):
        allowances.join(f"{number:x}")
    assert len(allowances._joins) == INVITES_AT_HAND
