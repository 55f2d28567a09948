"""A broker may hand over anything. What a device takes for the hub's word, and what it never does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.crypto.envelope import MAX_BYTES, sign
from agent.crypto.identity import Identity
from agent.crypto.replay import WINDOW
from agent.errors import ProtocolError
from agent.federation.listening import CHUNKS_A_SAVE, TO_ONE, Listening
from agent.federation.store import DeviceStore, open_device_store
from agent.paths import Home
from agent.transport.link import Message
from agent.transport.topics import Topics

COMMUNITY = bytes(range(16))
TOPICS = Topics(COMMUNITY.hex())
HUB, ME, OTHER = (Identity.generate() for _ in range(3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeviceStore]:
    home = Home(tmp_path)
    home.create()
    with open_device_store(home, create=True) as made:
        yield made


def listening(store: DeviceStore) -> Listening:
    return Listening(store=store, topics=TOPICS, device=ME.id, hub=HUB.public)


def message(kind: str, counter: int, *, who: Identity = HUB, topic: str = "", community: bytes = COMMUNITY) -> Message:
    payload = sign(who, kind=kind, community=community, counter=counter, time=0, body=b"")
    where = TOPICS.to(ME.id, kind) if kind in TO_ONE else TOPICS.hub(kind)
    return Message(topic or where, payload, retained=False, _acknowledge=lambda: None)


def code(hub: Listening, one: Message) -> str:
    """Give why a message is refused; nothing where it was taken in."""
    try:
        hub.handled(hub.look(one))
    except ProtocolError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("why", "one"),
    [
        ("unknown-sender", message("receipt", 1, who=OTHER)),
        ("wrong-community", message("receipt", 1, community=bytes(16))),
        ("wrong-kind", message("receipt", 1, topic=TOPICS.to(ME.id, "offer"))),
        ("wrong-kind", message("receipt", 1, topic=TOPICS.to(OTHER.id, "receipt"))),
        ("wrong-kind", message("receipt", 1, topic=TOPICS.hub("round"))),
        ("wrong-kind", message("card", 1)),
        ("wrong-kind", message("receipt", 1, topic=TOPICS.from_(ME.id, "receipt"))),
        ("malformed", message("receipt", 1, topic="bramble/elsewhere")),
        ("malformed", replace(message("receipt", 1), payload=b"junk")),
        ("oversized", replace(message("receipt", 1), payload=bytes(MAX_BYTES + 1))),
    ],
)
def test_what_is_not_the_hubs_word_for_this_device_is_refused(store: DeviceStore, why: str, one: Message) -> None:
    assert code(listening(store), one) == why


def test_forged_message_is_refused_and_does_not_use_up_its_counter(store: DeviceStore) -> None:
    hub, one = listening(store), message("receipt", 7)
    forged = replace(one, payload=one.payload[:-1] + bytes([one.payload[-1] ^ 1]))
    assert code(hub, forged) == "bad-signature"
    assert code(hub, one) == ""


@pytest.mark.parametrize("kind", ["offer", "receipt"])
def test_message_that_was_handled_is_refused_when_it_comes_again_also_after_a_restart(
    store: DeviceStore, kind: str
) -> None:
    hub = listening(store)
    assert code(hub, message(kind, 7)) == ""
    assert code(hub, message(kind, 7)) == "replayed"
    assert code(listening(store), message(kind, 7)) == "replayed"


def test_message_that_was_not_handled_yet_is_taken_when_the_broker_sends_it_again(store: DeviceStore) -> None:
    one = message("receipt", 7)
    listening(store).look(one)  # and the device is killed before it has done anything
    assert code(listening(store), one) == ""


def test_a_kind_that_comes_late_is_not_shut_out_by_the_others(store: DeviceStore) -> None:
    """A broker keeps the order of one topic; what waited there while others went on is still new."""
    hub = listening(store)
    assert code(hub, message("chunk", 50_000)) == ""
    assert code(hub, message("receipt", 7)) == ""
    assert code(hub, message("chunk", 50_000 - WINDOW)) == "replayed"


def test_counters_of_chunks_are_written_down_now_and_then(store: DeviceStore) -> None:
    hub = listening(store)
    for counter in range(CHUNKS_A_SAVE):
        assert code(hub, message("chunk", counter)) == ""
    assert code(listening(store), message("chunk", CHUNKS_A_SAVE - 1)) == "replayed"


def test_retained_words_come_again_with_each_connection_and_are_not_counted_here(store: DeviceStore) -> None:
    hub = listening(store)
    assert [code(hub, message("round", 7)) for _ in range(3)] == ["", "", ""]


def test_damaged_memory_of_counters_does_not_stop_a_device(store: DeviceStore) -> None:
    store.set_fact("heard-receipt", b"damaged")
    assert code(listening(store), message("receipt", 7)) == ""
