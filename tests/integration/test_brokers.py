"""The same round against a real mosquitto, in both versions of MQTT that it speaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.community import grown_release, make_community
from tests.integration.processes import succeed
from tests.transport.brokers import mosquitto

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("protocol", "spoken"), [("5", "p5"), ("3.1.1", "p2")])
def test_the_demo_runs_over_mosquitto(tmp_path: Path, protocol: str, spoken: str) -> None:
    size = ("--devices", "2", "--rounds", "1", "--steps", "4", "--batch-size", "2", "--window", "64")
    with mosquitto(tmp_path) as broker:
        environment = {"BRAMBLE_MQTT_PROTOCOL": protocol}
        report = tmp_path / "out.json"
        outputs = ("--json", report, "--plot", tmp_path / "out.png")
        succeed("demo", *size, "--broker", broker.url, *outputs, environment=environment, timeout=280)
        log = broker.log.read_text()
    assert f"({spoken}, c" in log  # mosquitto notes the version of each client: p2 is 3.1.1
    assert f"({'p2' if spoken == 'p5' else 'p5'}, c" not in log
    found = json.loads(report.read_text())
    assert (found["updates_accepted"], found["updates_refused"]) == (2, 0)
    assert [release["number"] for release in found["log"]["releases"]] == [0, 1]


def test_devices_wait_for_a_mosquitto_that_went_away_and_the_round_completes(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        community = make_community(tmp_path / "community", broker=broker.url)
        with community.hub() as hub:
            hub.wait_for("hub-ready")
            community.join_all()
            with community.device("ada") as ada, community.device("bob"):
                ada.wait_for("training")
                broker.kill()
                lost = ada.wait_for("link", where=lambda said: not said["connected"])
                broker.start()  # and it has forgotten everything
                ada.wait_for("link", after=lost, where=lambda said: said["connected"])
                assert grown_release(hub, 1).name == "promoted"
    assert community.counted(1) == community.everybody()
