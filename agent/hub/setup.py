"""Making a hub: keys, database, charter, release 0. And giving out invites."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.crypto import keyfile
from agent.crypto.passwords import derive_password
from agent.crypto.sealing import KEY_BYTES
from agent.errors import AlreadyInitialisedError, SettingsError
from agent.federation.invite import Invite
from agent.federation.making import make_keys, whole_database
from agent.federation.messages import Admission, Manifest
from agent.governance.charter import Charter
from agent.hub.issuing import authority_of
from agent.hub.store import HubConfig, ReleaseRow, create_store, open_store
from agent.llm.gguf_file import linear_names, open_gguf, sha256_file, target_shapes
from agent.paths import BlobStore, Home
from agent.transport.access import join_user
from agent.transport.address import parse_brokers
from agent.update.start import initial_adapter


@dataclass(frozen=True, slots=True)
class HubPlan:
    """What `bramble hub init` was asked for.

    Attributes:
        broker: URL of a broker of your own, or several separated by commas; none for the embedded one.
        device_broker: URL of the same broker as devices reach it, with an account for them; none for ``broker``.
        last_round: close the community after it; none for never.
        keep_releases: how many of the newest releases can be gone back to.
        admission: whether whoever holds an invite is let in at once, or when a steward has approved.
        operator: who runs the hub; newcomers see it.
    """

    name: str
    base: Path
    broker: str | None
    last_round: int | None
    charter: Charter
    device_broker: str | None = None
    allow_plaintext: bool = False
    heartbeat_seconds: float = 60.0
    keep_releases: int = 10
    admission: Admission = "automatic"
    operator: str = ""


def describe_base(path: Path) -> dict[str, Any]:
    """Give the charter's words for a base: name, SHA-256, size, and all its linear layers as what is changed.

    Raises:
        ModelError: the file is no GGUF that can be trained.
    """
    model = open_gguf(path)
    return {
        "base_name": path.stem,
        "base_sha256": sha256_file(model.path),
        "base_bytes": path.stat().st_size,
        "target_modules": linear_names(model),
    }


def create_hub(home: Home, plan: HubPlan, *, port: int = 0) -> HubConfig:
    """Make a hub in an empty state directory.

    Args:
        home: where.
        plan: what for.
        port: of the embedded broker, on loopback; 0 takes a free one at the first start and keeps it.

    Raises:
        AlreadyInitialisedError: there is one already.
        ModelError: the base cannot be trained, or has no layers of a name that the charter gives.
        SettingsError: the broker's address is none.
        PlaintextRefusedError: the broker is on another machine, and the connection would not be encrypted.
    """
    if home.database.exists():
        raise AlreadyInitialisedError(
            f"there is a hub or device in {home.root} already",
            advice="Use it, or choose another directory with --home. Nothing was changed.",
        )
    for urls in filter(None, (plan.broker, plan.device_broker)):
        for address in parse_brokers(urls):
            address.require_privacy(allow_plaintext=plan.allow_plaintext)
    shapes = target_shapes(open_gguf(plan.base), plan.charter.target_modules)
    first = initial_adapter(
        shapes,
        rank=plan.charter.rank,
        alpha=plan.charter.alpha,
        seed=0,
        base_sha256=plan.charter.base_sha256,
    )
    home.create()
    make_keys(home, "hub")
    config = HubConfig(
        name=plan.name,
        community=secrets.token_hex(16),
        broker=plan.broker or f"mqtt://127.0.0.1:{port}",
        device_broker=plan.device_broker or "",
        embedded=plan.broker is None,
        allow_plaintext=plan.allow_plaintext,
        heartbeat_seconds=plan.heartbeat_seconds,
        broker_secret=secrets.token_hex(32),
        base_path=str(plan.base.resolve()),
        last_round=plan.last_round,
        keep_releases=plan.keep_releases,
        admission=plan.admission,
        operator=plan.operator,
        charter=plan.charter,
    )
    data = first.to_bytes()
    sha256 = BlobStore(home.blobs).put(data)
    manifest = Manifest(number=0, sha256=sha256, parent="", size=len(data), round=0)
    row = ReleaseRow(manifest=manifest, content_key=secrets.token_bytes(KEY_BYTES), state="promoted", updates=())
    fresh = home.database.with_name(f"{home.database.name}.new")  # gets its name when everything is in it
    fresh.unlink(missing_ok=True)
    with whole_database(home):
        with create_store(home, url=f"sqlite:///{fresh}") as store:
            store.add_release(row)
            store.save_config(config)
        fresh.replace(home.database)
    home.database.chmod(0o600)
    authority_of(home, config.community, now=time.time())
    return config


def make_invite(home: Home, *, uses: int, expires_seconds: float, group: str = "") -> Invite:
    """Give out an invite.

    Args:
        home: the hub's.
        uses: devices that it lets in.
        expires_seconds: from now.
        group: which they are put into; empty for none.

    Raises:
        SettingsError: the embedded broker has no port yet, because the hub was never started.
    """
    public = keyfile.read(home.keys, "hub").public
    with open_store(home) as store:
        config = store.config
        if config.embedded and config.broker.endswith(":0"):
            raise SettingsError(
                f"the embedded broker of the hub in {home.root} has no port yet",
                advice="Start the hub once with `bramble hub run`, or give it a port: `bramble hub init --port 1883`.",
            )
        name, secret = secrets.token_bytes(8), secrets.token_bytes(32)
        expires = int(time.time() + expires_seconds)
        store.add_invite(name.hex(), secret, uses=uses, expires=expires, group=group)
    user = join_user(name.hex())
    return Invite(
        broker=config.device_broker or config.broker,
        community=bytes.fromhex(config.community),
        hub=public.fingerprint(),
        invite=name,
        secret=secret,
        broker_password=derive_password(bytes.fromhex(config.broker_secret), user) if config.embedded else "",
        expires=expires,
        authority=authority_of(home, config.community, now=time.time()).public if config.certificates else b"",
    )
