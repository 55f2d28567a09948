from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.transport.exchange import Attachment, Delivery, Exchange, Limits, Will


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Client:
    """A client that writes down what it gets."""

    exchange: Exchange
    user: str = "u"
    client_id: str = "c"
    got: list[tuple[bytes, bool, bool]] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    closed: bool = False
    attachment: Attachment | None = None

    def attach(self, *, lasting: bool = True, will: Will | None = None) -> bool | None:
        self.attachment = self.exchange.attach(
            user=self.user, client_id=self.client_id, lasting=lasting, will=will, deliver=self._take, close=self._close
        )
        if self.attachment is None:
            return None
        self.exchange.resume(self.attachment)
        return self.attachment.resumed

    def subscribe(self, topic_filter: str, qos: int = 1) -> int | None:
        assert self.attachment is not None
        granted = self.exchange.subscribe(self.attachment, topic_filter, qos)
        self.exchange.send_retained(self.attachment, topic_filter)
        return granted

    def acknowledge(self) -> None:
        assert self.attachment is not None
        self.exchange.acknowledge(self.attachment, self.unacknowledged.pop(0))

    def leave(self, *, orderly: bool = True) -> None:
        assert self.attachment is not None
        self.exchange.detach(self.attachment, orderly=orderly)

    @property
    def bodies(self) -> list[bytes]:
        return [body for body, _, _ in self.got]

    def _take(self, delivery: Delivery) -> None:
        self.got.append((delivery.payload, delivery.retained, delivery.again))
        if delivery.packet_id is not None:
            self.unacknowledged.append(delivery.packet_id)

    def _close(self) -> None:
        self.closed = True


def make(**limits: Any) -> tuple[Exchange, Clock]:
    clock = Clock()
    return Exchange(allowed=lambda _u, _a, _t: True, now=clock, limits=Limits(**limits)), clock


def test_only_so_many_messages_are_in_flight_and_the_rest_follow_in_order() -> None:
    exchange, _ = make(inflight=3)
    client = Client(exchange)
    client.attach()
    client.subscribe("t")
    for number in range(10):
        exchange.publish("p", "t", b"%d" % number, retain=False)
    assert client.bodies == [b"0", b"1", b"2"]
    while client.unacknowledged:
        client.acknowledge()
    assert client.bodies == [b"%d" % number for number in range(10)]


def test_what_was_in_flight_comes_again_and_is_marked() -> None:
    exchange, _ = make(inflight=2)
    client = Client(exchange)
    client.attach()
    client.subscribe("t")
    for number in range(3):
        exchange.publish("p", "t", b"%d" % number, retain=False)
    client.leave(orderly=False)
    client.got.clear()
    assert client.attach() is True
    assert client.got == [(b"0", False, True), (b"1", False, True)]


def test_a_session_that_does_not_last_is_forgotten() -> None:
    exchange, _ = make()
    client = Client(exchange)
    client.attach(lasting=False)
    client.subscribe("t")
    client.leave()
    exchange.publish("p", "t", b"", retain=False)
    assert client.attach() is False
    assert client.got == []


def test_a_session_belongs_to_its_user() -> None:
    exchange, _ = make()
    owner, thief = Client(exchange, user="owner"), Client(exchange, user="thief")
    owner.attach()
    owner.subscribe("t")
    assert thief.attach() is False
    assert not owner.closed
    exchange.publish("p", "t", b"private", retain=False)
    assert (owner.bodies, thief.bodies) == ([b"private"], [])


def test_a_newer_connection_takes_over_and_the_older_ones_words_count_no_more() -> None:
    exchange, _ = make()
    old, new, watcher = Client(exchange), Client(exchange), Client(exchange, client_id="watcher")
    watcher.attach()
    watcher.subscribe("will")
    old.attach(will=Will(topic="will", payload=b"gone", retain=False))
    old.subscribe("t")
    exchange.publish("p", "t", b"1", retain=False)
    assert new.attach() is True
    assert old.closed
    assert watcher.bodies == [b"gone"]
    old.acknowledge()
    old.leave(orderly=False)
    assert watcher.bodies == [b"gone"]
    new.leave(orderly=False)
    again = Client(exchange)
    again.attach()
    assert again.bodies == [b"1"]


def test_a_will_is_published_unless_the_client_says_goodbye_and_only_where_it_may() -> None:
    exchange = Exchange(allowed=lambda _u, action, topic: action != "publish" or topic == "life", now=Clock())
    watcher = Client(exchange, client_id="watcher")
    watcher.attach()
    watcher.subscribe("#")
    for topic, orderly in (("life", True), ("elsewhere", False), ("life", False)):
        client = Client(exchange)
        client.attach(lasting=False, will=Will(topic=topic, payload=topic.encode(), retain=True))
        client.leave(orderly=orderly)
    assert watcher.bodies == [b"life"]
    assert exchange.forbidden == 1


def test_rules_hold_on_every_road() -> None:
    secret = {"on": False}
    exchange = Exchange(
        allowed=lambda user, action, _t: user != "u" or action == "subscribe" or not secret["on"], now=Clock()
    )
    client = Client(exchange)
    client.attach()
    assert client.subscribe("t") == 1
    secret["on"] = True
    exchange.publish("p", "t", b"live", retain=True)
    client.subscribe("t")
    client.leave()
    exchange.publish("p", "t", b"while away", retain=False)
    client.attach()
    assert client.got == []


def test_a_full_queue_keeps_the_old_and_drops_the_new() -> None:
    exchange, _ = make(inflight=1, queued_messages=3, queued_bytes=100)
    client = Client(exchange)
    client.attach()
    client.subscribe("t")
    for number in range(5):
        exchange.publish("p", "t", b"%d" % number, retain=False)
    assert exchange.dropped == 2
    while client.unacknowledged:
        client.acknowledge()
    assert client.bodies == [b"0", b"1", b"2"]
    exchange.publish("p", "t", bytes(101), retain=False)
    assert exchange.dropped == 3
    for _ in range(3):
        exchange.publish("p", "t", bytes(30), retain=False)
    assert client.attachment is not None
    assert client.attachment.session.size == 90


def test_retained_messages_are_bounded_and_can_be_replaced_and_cleared() -> None:
    exchange, _ = make(retained_messages=2, retained_bytes=10)
    for topic, body in (("a", b"1"), ("b", b"2"), ("c", b"3"), ("a", b"4"), ("b", b""), ("c", bytes(10)), ("c", b"5")):
        exchange.publish("p", topic, body, retain=True)
    client = Client(exchange)
    client.attach()
    client.subscribe("#")
    assert sorted(client.got) == [(b"4", True, False), (b"5", True, False)]
    assert exchange.dropped == 2


def test_sessions_and_filters_are_bounded() -> None:
    exchange, clock = make(sessions=2, filters=1, session_seconds=10)
    one, two, three = (Client(exchange, client_id=name) for name in "abc")
    assert (one.attach(), two.attach(), three.attach()) == (False, False, None)
    assert (one.subscribe("t"), one.subscribe("t"), one.subscribe("u")) == (1, 1, None)
    assert one.subscribe("bad#") is None
    one.leave()
    clock.time = 9.0
    assert three.attach() is None
    clock.time = 11.0
    assert three.attach() is False


def test_nobody_publishes_on_a_wildcard_or_a_topic_of_the_broker() -> None:
    exchange, _ = make()
    for topic in ("a/+", "#", "", "$SYS/x", "a\0"):
        assert not exchange.publish("p", topic, b"", retain=True)
    assert exchange.forbidden == 5


@given(st.lists(st.sampled_from(["publish", "ack", "break", "back"]), max_size=60))
def test_over_any_breaks_each_message_arrives_and_first_arrivals_are_in_order(steps: list[str]) -> None:
    exchange, _ = make(inflight=3)
    client = Client(exchange)
    client.attach()
    client.subscribe("t")
    published = 0
    for step in [*steps, "back"]:
        here = client.attachment is not None
        if step == "publish":
            exchange.publish("p", "t", b"%d" % published, retain=False)
            published += 1
        elif step == "ack" and here and client.unacknowledged:
            client.acknowledge()
        elif step == "break" and here:
            client.leave(orderly=False)
            client.attachment = None
            client.unacknowledged.clear()
        elif step == "back" and not here:
            client.attach()
    while client.unacknowledged:
        client.acknowledge()
    assert list(dict.fromkeys(client.bodies)) == [b"%d" % number for number in range(published)]
    assert client.attachment is not None
    assert (client.attachment.session.size, len(client.attachment.session.inflight)) == (0, 0)
