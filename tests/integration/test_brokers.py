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


def test_the_demo_runs_over_mosquitto(tmp_path: Path) -> None:
    size = ("--devices", "2", "--rounds", "1", "--steps", "4", "--batch-size", "2", "--window", "64")
    with mosquitto(tmp_path) as broker:
        report = tmp_path / "out.json"
        outputs = ("--json", report, "--plot", tmp_path / "out.png")
        succeed("demo", *size, "--broker", broker.url, *outputs, timeout=280)
        log = broker.log.read_text()
    assert "(p5, c" in log  # mosquitto notes the version of each client: p2 is 3.1.1
    assert "(p2, c" not in log
    found = json.loads(report.read_text())
    assert (found["updates_accepted"], found["updates_refused"]) == (2, 0)
    assert [release["number"] for release in found["log"]["releases"]] == [0, 1]


def one_round(directory: Path, broker: str, **environment: str) -> None:
    """Let two devices join over this broker and grow a release."""
    community = make_community(directory, broker=broker, environment=environment)
    with community.hub() as hub:
        hub.wait_for("hub-ready")
        community.join_all()
        with community.device("ada"), community.device("bob"):
            assert grown_release(hub, 1).name == "promoted"
    assert community.counted(1) == community.everybody()


def test_a_round_completes_over_mosquitto_with_mqtt_3(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        one_round(tmp_path / "community", broker.url, BRAMBLE_MQTT_PROTOCOL="3.1.1")
        log = broker.log.read_text()
    assert "(p2, c" in log
    assert "(p5, c" not in log


def test_a_round_completes_over_nats_server(tmp_path: Path) -> None:
    with nats(tmp_path) as broker:
        one_round(tmp_path / "community", broker.url)


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
