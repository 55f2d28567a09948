"""The disks of a community for one fault run: a hub, and devices that are members already. Made within the second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.crypto.identity import Identity
from agent.data.sources import survey
from agent.federation.store import Membership, open_device_store
from agent.governance.charter import Charter, RoundRules, TrainingPlan
from agent.hub.setup import HubPlan, create_hub, describe_base, make_invite
from agent.hub.store import open_store
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from agent.service import add_source, create_device
from tests.faults.plan import Plan
from tests.integration.community import write_text
from tests.models import Shape, write_model

COLLECT_SECONDS, TRIAL_SECONDS = 5.0, 4.0
REAL_COLLECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Disks:
    """Where everything lies.

    Attributes:
        devices: the homes, by name.
        ids: the devices' ids, by name.
    """

    hub: Home
    devices: Mapping[str, Home]
    ids: Mapping[str, str]


def tiny_base(directory: Path) -> Path:
    """Give a base of one small layer, made once a directory."""
    path = directory / "base.gguf"
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        write_model(path, Shape(layers=1, ffn=256))
    return path


def make_disks(directory: Path, plan: Plan, *, base: Path, urls: Mapping[str, str]) -> Disks:
    """Make a hub and its devices.

    Args:
        directory: an empty one.
        plan: of the run.
        base: a GGUF; the seedling takes its place where the workers are real.
        urls: of the broker, by who goes there: each has a proxy of their own.
    """
    base = SEEDLING_PATH if plan.real_workers else base
    hub = Home(directory / "hub")
    charter = _charter(plan, base)
    create_hub(
        hub,
        HubPlan(
            name=charter.name,
            base=base,
            broker=urls["hub"],
            last_round=plan.rounds,
            charter=charter,
            heartbeat_seconds=1.0,
        ),
    )
    homes = {name: Home(directory / name) for name in plan.devices}
    identities = {name: _make_device(home, plan, part) for part, (name, home) in enumerate(homes.items())}
    invite = make_invite(hub, uses=len(homes), expires_seconds=3600.0).invite.hex()
    now = int(time.time())
    with open_store(hub) as store:
        for name, identity in identities.items():
            assert store.admit(identity.public, nickname=name, invite=invite, now=now) == "admitted"
        community = store.config.community
    for name, home in homes.items():
        membership = Membership(
            community=community,
            broker=urls[name],
            hub=Identity.load(hub.keys, "hub").public.encode(),
            username="",
            password="",
            base=base,
            charter=charter,
            joined=now,
        )
        with open_device_store(home) as store_here:
            store_here.save_membership(membership)
    return Disks(hub=hub, devices=homes, ids={name: identity.id for name, identity in identities.items()})


def _charter(plan: Plan, base: Path) -> Charter:
    seconds = REAL_COLLECT_SECONDS if plan.real_workers else COLLECT_SECONDS
    return Charter(
        name=f"Run {plan.seed}",
        rank=plan.rank,
        alpha=2.0 * plan.rank,
        merge_rule="stack" if plan.seed % 2 else "fedavg",
        training=TrainingPlan(
            steps=4 if plan.real_workers else 1,
            batch_size=1,
            window=64,
            warmup_steps=1,
            moments="fresh" if plan.seed % 2 else "kept",
        ),
        rounds=RoundRules(
            quorum=plan.quorum,
            target=len(plan.devices),
            collect_seconds=seconds,
            trial_seconds=seconds if plan.real_workers else TRIAL_SECONDS,
        ),
        **describe_base(base),
    )


def _make_device(home: Home, plan: Plan, part: int) -> Identity:
    create_device(home)
    home.settings.write_text(
        "threads = 1\nresend_seconds = 1.0\nmax_heldout_windows = 2\ncheckpoint_seconds = 0.2\ncompute = 'float32'\n"
    )
    text = home.root.parent / f"text-of-{home.root.name}"
    if plan.real_workers:
        write_text(text, part, characters=20_000)
    else:
        text.mkdir()
        (text / "note.txt").write_text("Synthetic workers do not read this.\n")
    add_source(home, text, survey([text]))
    return Identity.load(home.keys)
