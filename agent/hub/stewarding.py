"""What a steward decides of members and invites, whether the hub runs at this moment or not.

Each is one transaction on the hub's database. A hub that runs looks there before it handles anything, so what was
decided holds from the moment at which the command has ended.
"""

from __future__ import annotations

import getpass
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from agent.errors import StateError
from agent.federation.messages import Admission
from agent.hub.conduct import Conduct
from agent.hub.issuing import revoke
from agent.hub.members import Decided, Decision
from agent.hub.store import HubConfig, HubStore, hub_blobs, open_store
from agent.paths import Home


def decide(home: Home, device: str, decision: Decision, *, reason: str = "") -> Decided:
    """Approve, refuse or revoke a device.

    A device that is revoked is heard no more; what it had sent that waits for a merge is dropped, and no release is
    sealed for it from then on.

    Args:
        home: the hub's.
        device: its id, or the beginning of it.
        decision: what is decided.
        reason: in the steward's words; a device that is revoked is told.

    Raises:
        NotInitialisedError: there is no hub.
        StateError: there is no such device, or it is not one of which this can be said.
    """
    with open_store(home) as store:
        decided = store.decide(device, decision, by=getpass.getuser(), reason=reason, now=int(time.time()))
        # A broker that goes by certificates is told once the book says so. Where that is cut short, the device is on
        # the next list (`bramble hub revocation-list`); the hub refuses it either way.
        if decision == "revoke" and store.config.certificates:
            revoke(store, decided.row.device, now=time.time())
        for update in decided.dropped.waiting:
            hub_blobs(home).discard(update)
    return decided


def pardon(home: Home, begins: str) -> str:
    """Forget what is held against one device, whether the hub runs at this moment or not; give its id.

    Args:
        home: the hub's.
        begins: the device's id, or enough of its beginning.

    Raises:
        StateError: no device begins so, or several do, or nothing is held against it.
    """
    with open_store(home) as store:
        fitting = [row.device for row in store.devices() if begins and row.device.startswith(begins)]
        if len(fitting) != 1:
            what = "no device begins with" if not fitting else f"{len(fitting)} devices begin with"
            raise StateError(f"{what} {begins!r}", advice="`bramble hub members` lists them.")
        if not store.pardon(fitting[0], by=getpass.getuser()):
            raise StateError(
                f"nothing is held against {fitting[0][:10]}", advice="`bramble hub members` says what is, of whom."
            )
    return fitting[0]


def set_admission(home: Home, admission: Admission) -> HubConfig:
    """Say how newcomers are let in from now on; who waits for a steward goes on waiting."""
    with open_store(home) as store:
        return store.change_config(admission=admission)


def take_back_invite(home: Home, invite: str) -> dict[str, Any]:
    """Let nobody else in on an invite.

    Raises:
        NotInitialisedError: there is no hub.
        StateError: there is no such invite.
    """
    with open_store(home) as store:
        row = store.take_back(invite, now=int(time.time()))
    return {"invite": row.invite, "used": row.uses - row.left, "uses": row.uses}


def list_invites(home: Home) -> list[dict[str, Any]]:
    """Give every invite, oldest first, and which devices came in on it."""
    now = time.time()
    with open_store(home) as store:
        rows, devices = store.invites(), store.everybody()
    return [
        {
            "invite": row.invite,
            "state": row.state(now),
            "uses": row.uses,
            "used": row.uses - row.left,
            "group": row.group,
            "created": row.created,
            "expires": row.expires,
            "devices": [device.device for device in devices if device.invite == row.invite],
        }
        for row in rows
    ]


def list_members(home: Home) -> dict[str, Any]:
    """Give how newcomers are let in, and every device that ever asked to be, with its conduct; who waits is first."""
    with open_store(home) as store:
        rows, admission = store.everybody(), store.config.admission
        conduct = _conduct_of(store)
    order = ("pending", "member", "refused", "revoked", "left", "succeeded")
    rows.sort(key=lambda row: (order.index(row.standing), row.joined, row.device))
    return {
        "admission": admission,
        "devices": [
            {
                "device": row.device,
                "nickname": row.nickname,
                "standing": row.standing,
                "group": row.group,
                "invite": row.invite,
                "joined": row.joined,
                "changed": row.changed,
                "reason": row.reason,
                "successor": row.successor,
                **conduct(row.device),
            }
            for row in rows
        ],
    }


def _conduct_of(store: HubStore) -> Callable[[str], dict[str, Any]]:
    """Give what tells of a device what it handed in, and what is held against it, as of now."""
    now, held = time.time(), store.conducts()
    counted = Counter(row.device for row in store.updates())

    def told(device: str) -> dict[str, Any]:
        conduct = held.get(device, Conduct(device))
        return {
            "updates": counted[device],
            "strikes": conduct.strikes,
            "times_set_aside": conduct.times,
            "set_aside_until": conduct.until if conduct.until > now else None,
            "held_against": conduct.reason,
        }

    return told
