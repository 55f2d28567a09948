"""What an operator asks of the members, and may forgive them."""

from __future__ import annotations

import getpass
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from agent.errors import StateError
from agent.hub.conduct import Conduct
from agent.hub.store import HubStore, open_store
from agent.paths import Home


def conduct_of(store: HubStore) -> Callable[[str], dict[str, Any]]:
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


def pardon_device(home: Home, begins: str) -> str:
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
