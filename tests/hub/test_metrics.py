from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import SettingsError
from agent.hub.metrics import parse_address, serve_metrics
from tests.hub.desk import Desk, make_desk


class Quiet:
    """A hub that has nothing to do."""

    connected = True

    def queues(self) -> dict[str, int]:
        return {"messages": 3, "adapters": 0}

    def traffic(self) -> dict[str, int]:
        return {"received": 10, "sent": 20}

    def refused(self) -> dict[str, int]:
        return {"replayed": 1}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = make_desk(tmp_path)
    yield made
    made.close()


def scrape(url: str) -> tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """Give what Prometheus sees, as text and by name and labels."""
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return text, {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_say_what_happened_and_where_the_rounds_are(desk: Desk) -> None:
    a, b, *_ = desk.names
    with serve_metrics("127.0.0.1:0", Quiet(), desk.store, desk.events):
        url = str(desk.said("metrics-ready")[0]["url"])
        desk.events.say("update-accepted", bytes=100, late=0, superseded="")
        desk.events.say("update-accepted", bytes=50, late=1, superseded="u")
        desk.events.say("update-refused", reason="too-late")
        desk.events.say("verdict")
        desk.round(a, b)
        text, found = scrape(url)
    expected = {
        ("bramble_hub_updates_accepted_total", ()): 2,
        ("bramble_hub_updates_late_total", ()): 1,
        ("bramble_hub_updates_superseded_total", ()): 1,
        ("bramble_hub_updates_refused_total", (("reason", "too-late"),)): 1,
        ("bramble_hub_update_bytes_total", ()): 150,
        ("bramble_messages_refused_total", (("reason", "replayed"),)): 1,
        ("bramble_messages_refused_total", (("reason", "rate"),)): 0,
        ("bramble_hub_devices_set_aside", ()): 0,
        ("bramble_hub_verdicts_total", ()): 1,
        ("bramble_hub_rounds_total", (("outcome", "promoted"),)): 1,
        ("bramble_hub_merge_seconds_count", ()): 1,
        ("bramble_hub_connected", ()): 1,
        ("bramble_hub_devices", ()): 4,
        ("bramble_hub_release", ()): 1,
        ("bramble_hub_round", ()): 2,
        ("bramble_hub_phase", (("phase", "open"),)): 1,
        ("bramble_hub_phase", (("phase", "trial"),)): 0,
        ("bramble_hub_queue_length", (("queue", "messages"),)): 3,
        ("bramble_hub_message_bytes_total", (("direction", "sent"),)): 20,
    }
    assert {key: found[key] for key in expected} == expected
    assert not re.search(f"{a}|{b}", text)  # nothing says who took part
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def test_address_that_cannot_be_used_is_explained(desk: Desk) -> None:
    assert parse_address("[::1]:9464") == ("::1", 9464)
    for wrong in ("9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ":9464"):
        with pytest.raises(SettingsError, match="no address"):
            parse_address(wrong)
    with serve_metrics("127.0.0.1:0", Quiet(), desk.store, desk.events):
        taken = str(desk.said("metrics-ready")[0]["url"]).split("/")[2]
        with (
            pytest.raises(SettingsError, match="cannot be served"),
            serve_metrics(taken, Quiet(), desk.store, desk.events),
        ):
            pass
