"""Killed with -9 at the worst moments, started again: the round completes, and everything counts once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.community import Community, grown_release, make_community, wait_next_round
from tests.integration.processes import end_now

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Community:
    """A community of two with the embedded broker, just before its first round; nothing runs."""
    made = make_community(tmp_path_factory.mktemp("crashes") / "template", steps=8, settings="checkpoint_seconds = 0.5")
    with made.hub() as hub:
        hub.wait_for("hub-ready")
        made.join_all()
    return made


@pytest.fixture
def community(joined: Community, tmp_path: Path) -> Community:
    """A copy of it for one test."""
    return joined.copy(tmp_path / "community")


def test_device_killed_while_training_goes_on_and_counts_once(community: Community) -> None:
    with community.running("bob") as (hub, _bob):
        with community.device("ada") as ada:
            training = ada.wait_for("training")
            ada.wait_for("progress", after=training, where=lambda said: said["phase"] == "train" and said["step"] >= 1)
            ada.kill()
        with community.device("ada") as ada:
            ada.wait_for("trained")
            decided = grown_release(hub, 1)
            ada.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
        assert decided.name == "promoted"
        assert len(hub.all("update-accepted")) == 2
        assert not hub.all("update-refused")
    assert community.counted(1) == community.everybody()
    assert community.status()["refusals"] == []


def test_hub_killed_while_collecting_keeps_what_it_has_and_its_port(community: Community) -> None:
    broker = community.config.broker
    with community.running("ada") as (hub, ada):
        first = hub.wait_for("update-accepted")
        hub.kill()
        with community.running("bob") as (again, _bob):
            wait_next_round(again, 1)
            ready = again.wait_for("broker-ready")
            decided = grown_release(again, 1)
            ada.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
            accepted = again.all("update-accepted")
    assert ready["url"] == broker
    assert decided.name == "promoted"
    assert [said["device"] for said in (first, *accepted)] == [community.device_id("ada"), community.device_id("bob")]
    assert community.counted(1) == community.everybody()


def test_hub_killed_in_a_trial_decides_on_the_same_candidate(community: Community) -> None:
    with community.running("ada", "bob") as (hub, ada, _bob):
        merged = hub.wait_for("merged")
        hub.kill()
        with community.hub() as again:
            resumed = wait_next_round(again, 1)
            decided = grown_release(again, 1)
            ada.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
    assert "trial" in resumed["text"]
    assert decided["candidate"] == merged["candidate"]
    assert community.counted(1) == community.everybody()


def test_broker_killed_in_a_round_comes_back_on_its_port_and_the_round_completes(community: Community) -> None:
    with community.running("ada") as (hub, ada):
        before = hub.wait_for("broker-ready")
        hub.wait_for("update-accepted")
        end_now(before["pid"])
        hub.wait_for("broker-lost")
        back = hub.wait_for("broker-ready", after=before)
        with community.device("bob"):
            decided = grown_release(hub, 1)
            ada.wait_for("adopted", "declined", where=lambda said: said["release"] == 1)
    assert back["url"] == before["url"]
    assert decided.name == "promoted"
    assert community.counted(1) == community.everybody()
