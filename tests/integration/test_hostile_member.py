"""A real hub and honest devices at a real mosquitto, and one enrolled device that does what it likes."""

from __future__ import annotations

import asyncio
import secrets
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.crypto.envelope import sign
from agent.crypto.identity import Identity
from agent.federation.messages import Chunk, Verdict, Want
from agent.hub.store import open_store
from agent.transport.mqtt import MqttLink
from agent.transport.topics import Topics
from agent.transport.transfer import CHUNK_BYTES
from tests.integration.community import Community, make_community
from tests.integration.processes import Running
from tests.transport.brokers import free_port, mosquitto

pytestmark = pytest.mark.slow

WANTS, VERDICTS, CHUNKS = 40, 800, 450
"""Messages of the flood: several times what a device may ask at once, and more chunks than fit into its burst."""


async def flood(community: Community, broker: str, identity: Identity) -> None:
    """Send what costs a hub most, all of it signed as it should be."""
    topics = Topics(community.config.community)
    with open_store(community.hub_home) as store:
        release = store.current().manifest.sha256
    counter = 10**6

    async def say(link: MqttLink, kind: str, body: bytes) -> None:
        nonlocal counter
        counter += 1
        envelope = sign(
            identity, kind=kind, community=bytes.fromhex(topics.community), counter=counter, time=0, body=body
        )
        await link.publish(topics.from_(identity.id, kind), envelope)

    async with MqttLink(url=broker, client_id="eve", session_seconds=0) as link:
        about, want = secrets.token_bytes(16), Want(adapter=release, missing=[]).encode()
        verdict = Verdict(about=about, round=1, candidate="a" * 64, before=1, after=1, targets=9).encode()
        chunk = Chunk(transfer=about, index=0, data=bytes(CHUNK_BYTES)).encode()
        for kind, body, times in (("want", want, WANTS), ("verdict", verdict, VERDICTS), ("chunk", chunk, CHUNKS)):
            for start in range(0, times, 50):
                count = min(50, times - start)
                await asyncio.gather(*(say(link, kind, body) for _ in range(count)))
        for _ in range(50):
            await say(link, "offer", secrets.token_bytes(900))


def refused(port: int) -> dict[str, float]:
    """Read the hub's counts of refused messages, as Prometheus does."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        sample.labels["reason"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "bramble_messages_refused_total"
    }


def hub_with_metrics(community: Community, port: int) -> Running:
    hub = community.hub()
    hub.arguments = [*hub.arguments, "--metrics", f"127.0.0.1:{port}"]
    return hub


def test_flood_of_an_enrolled_device_is_dropped_and_the_round_of_the_others_completes(tmp_path: Path) -> None:
    port = free_port()
    with mosquitto(tmp_path, ("allow_anonymous true", "max_queued_messages 0")) as broker:
        community = make_community(tmp_path / "community", broker=broker.url, devices=("ada",))
        with hub_with_metrics(community, port) as hub:
            hub.wait_for("hub-ready")
            community.join_all()
            eve = Identity.generate()
            with open_store(community.hub_home) as store:
                invite = community.invite(uses=1).invite.hex()
                assert store.admit(eve.public, nickname="eve", invite=invite, now=0) == "admitted"
        with hub_with_metrics(community, port) as hub:  # it knows her now
            hub.wait_for("hub-ready")
            before = psutil.Process(hub.process.pid).memory_info().rss
            with community.device("ada"):
                asyncio.run(flood(community, broker.url, eve))
                hub.wait_for("promoted", "rejected", within=450)  # a busy machine floods and trains at once
                grown = psutil.Process(hub.process.pid).memory_info().rss - before
                counts = refused(port)
                told = hub.wait_for("device-set-aside")
        everybody = community.everybody()
        assert community.counted(1) == everybody
    assert told["device"] == eve.id
    assert counts["rate"] > 100  # two a second flow in, and this machine may be busy
    assert counts["bad-signature"] == counts["unknown-sender"] == 0
    assert grown < 150 * 1024 * 1024
    stored = sum(path.stat().st_size for path in community.hub_home.inbox.rglob("*") if path.is_file())
    assert stored < 4 * 1024 * 1024
    assert len(hub.all("message-refused")) < sum(counts.values()) / 2  # the log is not hers to fill
