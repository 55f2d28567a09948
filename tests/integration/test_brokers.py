"""The same round against real brokers: mosquitto in both versions of MQTT that it speaks, and nats-server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.service import device_status
from tests.integration.community import grown_release, make_community
from tests.integration.processes import succeed
from tests.transport.brokers import free_port, mosquitto, nats

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


def test_the_demo_runs_over_nats_server(tmp_path: Path) -> None:
    size = ("--devices", "2", "--rounds", "1", "--steps", "4", "--batch-size", "2", "--window", "64")
    with nats(tmp_path) as broker:
        outputs = ("--json", tmp_path / "out.json", "--plot", tmp_path / "out.png")
        succeed("demo", *size, "--broker", broker.url, *outputs, timeout=280)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["updates_accepted"], found["updates_refused"]) == (2, 0)
    assert [release["number"] for release in found["log"]["releases"]] == [0, 1]


def test_hub_and_devices_started_before_their_broker_wait_for_it_and_the_round_completes(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        # The second of two brokers: the first never comes.
        urls = f"mqtt://127.0.0.1:{free_port()},{broker.url}"
        community = make_community(tmp_path / "community", broker=urls)
        with community.running() as (_hub,):
            community.join_all()
        broker.kill()
        with community.hub() as hub, community.device("ada") as ada, community.device("bob") as bob:
            for process in (hub, ada, bob):
                assert "waiting for the broker" in process.wait_for("link")["text"]
            broker.start()
            for process in (hub, ada, bob):
                assert process.wait_for("link", where=lambda said: said["connected"])["broker"] == broker.url
            assert grown_release(hub, 1).name == "promoted"
            assert device_status(community.home("ada"))["connected_to"] == broker.url
    assert community.counted(1) == community.everybody()


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
