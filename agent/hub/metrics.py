"""What the hub counts, for Prometheus (`bramble hub run --metrics HOST:PORT`).

Names and units follow the conventions of Prometheus (https://prometheus.io/docs/practices/naming/). Nothing names a
device: who took part in a round is for the hub's operator (`bramble hub round`), not for a dashboard.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.errors import SettingsError
from agent.events import Events, Value
from agent.federation.refusals import reasons
from agent.hub.rounds import FOLLOWERS
from agent.hub.store import HubStore

MERGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Seconds: from a community of a few devices to one of thousands."""


class Measured(Protocol):
    """What metrics ask a running hub."""

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached at this moment."""
        ...

    def queues(self) -> dict[str, int]:
        """Give how much waits in memory, by what it is."""
        ...

    def traffic(self) -> dict[str, int]:
        """Give the bytes of messages received and sent since the start."""
        ...

    def refused(self) -> dict[str, int]:
        """Give how many messages were dropped since the start, by reason."""
        ...


class HubMetrics(Collector):
    """Counts events as they are said, and reads the rest when Prometheus asks.

    Args:
        hub: what is asked for its link and queues.
        store: what is asked for the rounds.
    """

    def __init__(self, hub: Measured, store: HubStore) -> None:
        self._hub = hub
        self._store = store
        self.registry = registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"bramble_hub_{name}", words, labels, registry=registry)

        self._rounds = counter("rounds", "Rounds that ended, by outcome.", "outcome")
        self._accepted = counter("updates_accepted", "Updates that were counted.")
        self._late = counter("updates_late", "Updates that were counted in a later round than their own.")
        self._superseded = counter("updates_superseded", "Updates that a newer one of the device took the place of.")
        self._refused = counter("updates_refused", "Updates that were refused, by reason.", "reason")
        self._bytes = counter("update_bytes", "Sealed bytes of the updates that were counted.")
        self._verdicts = counter("verdicts", "Verdicts of devices on candidates.")
        self._merges = Histogram(
            "bramble_hub_merge_seconds", "How long merges took.", buckets=MERGE_BUCKETS, registry=registry
        )
        registry.register(self)

    def __call__(self, event: str, fields: dict[str, Value]) -> None:
        """Hear an event of the hub."""
        match event:
            case "update-accepted":
                self._accepted.inc()
                self._bytes.inc(_number(fields, "bytes"))
                if fields.get("late"):
                    self._late.inc()
                if fields.get("superseded"):
                    self._superseded.inc()
            case "update-refused":
                self._refused.labels(str(fields["reason"])).inc()
            case "verdict":
                self._verdicts.inc()
            case "merged":
                self._merges.observe(_number(fields, "seconds"))
            case "promoted" | "rejected" | "rolled-back":
                self._rounds.labels(event).inc()

    def collect(self) -> Iterable[Metric]:
        """Give what is so at this moment; called by Prometheus' server in a thread of its own."""
        state = self._store.round_state()
        yield _gauge("connected", "Whether the broker can be reached.", float(self._hub.connected))
        yield _gauge("devices", "Devices that are enrolled.", self._store.count_devices())
        yield _gauge("release", "Number of the release that stands.", self._store.current().manifest.number)
        yield _gauge("round", "Number of the round.", 0 if state is None else state.number)
        phases = GaugeMetricFamily("bramble_hub_phase", "1 for the phase that the round is in.", labels=["phase"])
        for phase in FOLLOWERS:
            phases.add_metric([phase], float(state is not None and state.phase == phase))
        yield phases
        queues = GaugeMetricFamily("bramble_hub_queue_length", "What waits in memory.", labels=["queue"])
        for name, length in self._hub.queues().items():
            queues.add_metric([name], length)
        yield queues
        traffic = CounterMetricFamily("bramble_hub_message_bytes", "Bytes of messages.", labels=["direction"])
        for direction, count in self._hub.traffic().items():
            traffic.add_metric([direction], count)
        yield traffic
        refused = CounterMetricFamily(
            "bramble_messages_refused", "Messages that were dropped, by reason.", labels=["reason"]
        )
        counts = self._hub.refused()
        for reason in reasons():  # these and no others: nothing that is sent makes a label
            refused.add_metric([reason], counts.get(reason, 0))
        yield refused
        aside = len(self._store.set_aside(time.time()))
        yield _gauge("devices_set_aside", "Devices whose updates are refused for what they sent before.", aside)


@contextlib.contextmanager
def serve_metrics(address: str, hub: Measured, store: HubStore, events: Events) -> Iterator[None]:
    """Serve a hub's metrics over HTTP while the context lasts.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one, which the event ``metrics-ready`` names.
        hub: what is measured.
        store: the hub's memory.
        events: what is counted.

    Raises:
        SettingsError: it is no address, or cannot be listened on.
    """
    host, port = parse_address(address)
    metrics = HubMetrics(hub, store)
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as cause:
        raise SettingsError(
            f"metrics cannot be served at {address}: {cause.strerror or cause}",
            advice="Choose another port, or an address that this machine has.",
        ) from cause
    url = f"http://{address.rpartition(':')[0]}:{server.server_port}/metrics"
    events.listeners.append(metrics)
    events.say("metrics-ready", f"metrics are at {url}", url=url)
    try:
        yield
    finally:
        events.listeners.remove(metrics)
        server.shutdown()
        server.server_close()
        thread.join()


def parse_address(address: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, with IPv6 addresses in brackets.

    Raises:
        SettingsError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 2**16:
        raise SettingsError(f"{address!r} is no address to serve metrics at", advice="Write it as 127.0.0.1:9464.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bramble_hub_{name}", words, value=value)


def _number(fields: dict[str, Value], name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0
