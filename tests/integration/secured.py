"""A hub and devices in one process, and a real mosquitto with the files that `bramble hub broker-config` writes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.crypto.authority import AUTHORITY_KEY_FILE, Authority
from agent.crypto.certificates import Certificate, TlsKey
from agent.crypto.identity import Identity
from agent.events import Events
from agent.federation.credentials import Credentials
from agent.federation.store import Membership, open_device_store
from agent.hub.broker_files import BrokerPlan, write_broker_files
from agent.hub.process import build_hub
from agent.hub.setup import make_invite
from agent.hub.store import HubConfig, HubStore, open_store
from agent.joining import join_community
from agent.paths import Home
from agent.service import build_device, create_device
from agent.settings import DeviceSettings
from agent.transport.mqtt import MqttLink
from agent.transport.tls import Tls
from tests.hub.world import Heard, make_world
from tests.transport.brokers import Broker, free_port, mosquitto_with

FAST = (0.01, 0.1)


@dataclass
class Secured:
    """A hub's home, a broker that runs, and what it takes to connect to it as anybody."""

    home: Home
    base: Path
    config: HubConfig
    broker: Broker
    heard: Heard = field(default_factory=Heard)

    @property
    def authority(self) -> Authority:
        return Authority.load(self.home.keys, self.config.community)

    @property
    def newcomers(self) -> str:
        """URL of the listener for newcomers, with their account."""
        return self.config.device_broker

    def trusting(self) -> Tls:
        return Tls(authority=self.authority.pem())

    def shown(self, name: str, *, age: dt.timedelta = dt.timedelta(0), by: Authority | None = None) -> Tls:
        """Show a certificate for a name, good for 30 days, that was issued so long ago."""
        key = TlsKey.generate()
        certificate = (by or self.authority).certify_member(
            name, key.request(name), now=time.time() - age.total_seconds(), life=dt.timedelta(days=30)
        )
        return self.kept(key, certificate)

    def kept(self, key: TlsKey, certificate: Certificate) -> Tls:
        path = self.home.root.parent / f"{certificate.serial}.pem"
        path.write_bytes(certificate.pem() + key.pem())
        return Tls(authority=self.authority.pem(), certificate=path, key=path)

    def link(self, tls: Tls, *, client_id: str = "c", url: str | None = None, **options: Any) -> MqttLink:
        """Give a link to the members' listener, unless told otherwise."""
        url = url or self.config.member_broker
        return MqttLink(url=url, client_id=client_id, tls=lambda: tls, backoff=FAST, **options)

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[HubStore]:
        """Run the hub while the context lasts."""
        with open_store(self.home) as store:
            events = Events(quiet=True, listeners=[self.heard])
            hub = build_hub(store, Identity.load(self.home.keys, "hub"), broker=self.config.broker, events=events)
            async with _running(hub.run()):
                await self.heard.until("hub-ready")
                yield store

    async def join(self, directory: Path) -> tuple[Home, Membership]:
        """Make a device, and have it join with an invite."""
        home = Home(directory)
        create_device(home)
        line = make_invite(self.home, uses=1, expires_seconds=60).encode()
        return home, await join_community(home, line, base=self.base, agree=lambda _door: True)

    @contextlib.asynccontextmanager
    async def device(self, home: Home) -> AsyncIterator[Heard]:
        """Run a device while the context lasts."""
        heard = Heard()
        with open_device_store(home) as store:
            events = Events(quiet=True, listeners=[heard])
            device = build_device(store, Identity.load(home.keys), DeviceSettings(), events=events)
            async with _running(device.run()):
                yield heard


def replace_certificate(community: Secured, home: Home, *, age: dt.timedelta, name: str = "") -> Certificate:
    """Put a certificate in the place of a device's that was issued so long ago, for 30 days, or for another name."""
    credentials = Credentials(home.keys, Identity.load(home.keys).id)
    made = community.authority.certify_member(
        name or credentials.device,
        credentials.request(),
        now=time.time() - age.total_seconds(),
        life=dt.timedelta(days=30),
    )
    credentials.certificate_path.write_bytes(made.pem())
    return made


@contextlib.asynccontextmanager
async def _running(work: Any) -> AsyncIterator[None]:
    """Run something beside, and have its error end what waits for it."""
    task = asyncio.create_task(work)
    waiting = asyncio.current_task()
    assert waiting is not None

    def ended(done: asyncio.Task[Any]) -> None:
        if not done.cancelled():
            waiting.cancel("what runs beside has ended")

    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.remove_done_callback(ended)
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(results[0], asyncio.CancelledError):
            raise results[0]


@contextlib.contextmanager
def secured(directory: Path, base: Path, *, host: str = "localhost") -> Iterator[Secured]:
    """Make a community that is three months old, write its broker's files, and run mosquitto with them."""
    home = make_world(directory / "hub", base).home
    with open_store(home) as store:
        community = store.config.community
    (home.keys / AUTHORITY_KEY_FILE).unlink()
    Authority.load_or_make(home.keys, community, now=time.time() - 90 * 86_400)
    port, newcomers = free_port(), free_port()
    plan = BrokerPlan(
        hosts=(host,), directory=directory / "broker", listen="127.0.0.1", port=port, newcomers_port=newcomers
    )
    config = write_broker_files(home, plan, now=time.time())
    with mosquitto_with(directory / "broker" / "mosquitto.conf", port, other_ports=[newcomers]) as broker:
        yield Secured(home=home, base=base, config=config, broker=broker)
