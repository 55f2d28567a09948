"""The hub as a process: its state directory held, its broker beside it, until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import time

from agent.crypto.identity import Identity
from agent.crypto.passwords import derive_password
from agent.events import Events
from agent.federation.credentials import client_id
from agent.hub.broker import configured_port, keep_broker
from agent.hub.hub import Hub
from agent.hub.issuing import broker_certificate, hub_tls
from agent.hub.store import HubConfig, HubStore, open_store
from agent.hub.succession import finish
from agent.paths import Home, exclusive
from agent.running import run_until_signalled
from agent.settings import mqtt_protocol
from agent.transport.access import HUB_USER
from agent.transport.mqtt import MqttLink
from agent.transport.tls import Tls

RENEW_BROKER_SECONDS = 30 * 86_400
"""How long before the broker's certificate expires the hub begins to warn at its start."""


def build_hub(store: HubStore, identity: Identity, *, broker: str, events: Events) -> Hub:
    """Put a hub together: the one way in."""
    config = store.config
    password = derive_password(bytes.fromhex(config.broker_secret), HUB_USER) if config.embedded else None
    link = MqttLink(
        url=broker,
        client_id=client_id(identity, config.community),
        username=HUB_USER if config.embedded else None,
        password=password,
        protocol=mqtt_protocol(),
        allow_plaintext=config.allow_plaintext,
        tls=(lambda: hub_tls(store.home, config, now=time.time())) if config.certificates else Tls,
        patient=True,
    )
    return Hub(store=store, identity=identity, link=link, events=events)


def run_hub_process(home: Home, *, events: Events, metrics: str | None = None, with_parent: bool = False) -> None:
    """Run the hub in ``home`` until SIGINT or SIGTERM, or ``with_parent`` until standard input ends.

    Args:
        home: the hub's state directory.
        events: where to tell what happens.
        metrics: ``HOST:PORT`` at which to serve metrics for Prometheus; None for nowhere.
        with_parent: end with whoever started this process.

    Raises:
        AlreadyRunningError: it runs already.
        BrambleError: whatever stands in the way of starting.
    """
    with open_store(home) as store, exclusive(home):
        home.remove_unfinished()
        finish(store)
        identity = Identity.load(home.keys, "hub")
        run_until_signalled(_run(store, identity, events, metrics), with_parent=with_parent)


def _warn_of_the_end(config: HubConfig, events: Events) -> None:
    """Say that the broker's certificate has to be renewed soon: with one that expired nobody connects."""
    certificate = broker_certificate(config)
    if certificate is not None and certificate.ends - time.time() < RENEW_BROKER_SECONDS:
        until = time.strftime("%Y-%m-%d", time.localtime(certificate.ends))
        words = (
            f"the broker's certificate is good until {until} only: run `bramble hub broker-config` again, and reload it"
        )
        events.say("broker-certificate-ends", words, ends=int(certificate.ends))


async def _run(store: HubStore, identity: Identity, events: Events, metrics: str | None) -> None:
    config = store.config

    _warn_of_the_end(config, events)

    async def run(broker: str) -> None:
        hub = build_hub(store, identity, broker=broker, events=events)
        with contextlib.ExitStack() as stack:
            if metrics is not None:
                from agent.hub.metrics import serve_metrics  # noqa: PLC0415 (a web server, for who wants one)

                stack.enter_context(serve_metrics(metrics, hub, store, events))
            await hub.run()

    if not config.embedded:
        await run(config.broker)
        return
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            keep_broker(store.home, port=configured_port(config.broker), events=events, ready=ready), name="broker"
        )
        url = await ready
        if url != config.broker:
            store.change_config(broker=url)
        await run(url)
