"""A real hub and honest devices at a real mosquitto, and one enrolled device that does what it likes."""

from __future__ import annotations

import asyncio
import secrets
import urllib.request
from dataclasses import dataclass, field
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


@dataclass
class Eve:
    """A member who signs as she should, whatever she says."""

    community: str
    broker: str
    identity: Identity = field(default_factory=Identity.generate)
    counter: int = 10**6

    async def say(self, link: MqttLink, kind: str, body: bytes) -> None:
        self.counter += 1
        envelope = sign(
            self.identity, kind=kind, community=bytes.fromhex(self.community), counter=self.counter, time=0, body=body
        )
        await link.publish(Topics(self.community).from_(self.identity.id, kind), envelope)

    def link(self) -> MqttLink:
        return MqttLink(url=self.broker, client_id="eve", session_seconds=0)


async def flood(eve: Eve, release: str) -> None:
    """Send what costs a hub most."""
    async with eve.link() as link:
        about, want = secrets.token_bytes(16), Want(adapter=release, missing=[]).encode()
        verdict = Verdict(about=about, round=1, candidate="a" * 64, before=1, after=1, targets=9).encode()
        chunk = Chunk(transfer=about, index=0, data=bytes(CHUNK_BYTES)).encode()
        for kind, body, times in (("want", want, WANTS), ("verdict", verdict, VERDICTS), ("chunk", chunk, CHUNKS)):
            for start in range(0, times, 50):
                count = min(50, times - start)
                await asyncio.gather(*(eve.say(link, kind, body) for _ in range(count)))


async def talk_nonsense(eve: Eve) -> None:
    """Send offers that are none; what she may ask is spent, and two a second flow in."""
    async with eve.link() as link:
        await asyncio.gather(*(eve.say(link, "offer", secrets.token_bytes(900)) for _ in range(10)))


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
            eve = Eve(community.config.community, broker.url)
            with open_store(community.hub_home) as store:
                invite, release = community.invite(uses=1).invite.hex(), store.current().manifest.sha256
                assert store.admit(eve.identity.public, nickname="eve", invite=invite, now=0) == "admitted"
        with hub_with_metrics(community, port) as hub:  # it knows her now
            hub.wait_for("hub-ready")
            before = psutil.Process(hub.process.pid).memory_info().rss
            with community.device("ada"):
                asyncio.run(flood(eve, release))
                hub.wait_for("promoted", "rejected", within=450)  # a busy machine floods and trains at once
                grown = psutil.Process(hub.process.pid).memory_info().rss - before
                counts = refused(port)
                for _ in range(200):
                    if hub.all("device-set-aside"):
                        break
                    asyncio.run(talk_nonsense(eve))
                told = hub.wait_for("device-set-aside")
        everybody = community.everybody()
        assert community.counted(1) == everybody
    assert told["device"] == eve.identity.id
    assert counts["rate"] > 100  # two a second flow in, and this machine may be busy
    assert counts["bad-signature"] == counts["unknown-sender"] == 0
    assert grown < 150 * 1024 * 1024
    stored = sum(path.stat().st_size for path in community.hub_home.inbox.rglob("*") if path.is_file())
    assert stored < 4 * 1024 * 1024
    assert len(hub.all("message-refused")) < sum(counts.values()) / 2  # the log is not hers to fill
