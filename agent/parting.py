"""Leaving a community, put together from a device's state directory: what `bramble leave` does."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from agent.crypto import keyfile
from agent.crypto.passphrases import forget_keyring_key
from agent.errors import BrokerUnreachableError, NotInitialisedError, StateError
from agent.federation.leaving import TELL_SECONDS, begin, erase, tell
from agent.federation.standing import Farewell, farewell, save_farewell
from agent.federation.store import DeviceStore, open_device_store
from agent.paths import Home, exclusive
from agent.running import run_until_signalled
from agent.service import device_link


@dataclass(frozen=True, slots=True)
class Parted:
    """What leaving did.

    Attributes:
        community: the name of what was left; empty where the device was in none.
        told: the hub knows.
        why: what stood in the way of telling it.
        erased: everything of the device is gone from this machine.
        merged: updates of this device that are in releases, and cannot be taken out.
        withdrawn: updates that were made and had not been counted.
    """

    community: str
    told: bool
    why: str
    erased: bool
    merged: int
    withdrawn: int


def leave(home: Home, *, everything: bool, patience: float = TELL_SECONDS) -> Parted:
    """Withdraw from the community, and with ``everything`` remove the device from this machine.

    Killed anywhere, or cut off from the hub, it is finished by calling it again.

    Args:
        home: of the device, which must not run.
        everything: keys, settings, adapters and the database go too.
        patience: seconds for which the hub is told, if it does not answer.

    Raises:
        NotInitialisedError, NotJoinedError: there is no device, or it is in no community and nothing is to be removed.
        AlreadyRunningError: it runs.
        BrokerUnreachableError: the hub could not be told, and nothing is removed: it is to be told later.
    """
    with exclusive(_existing(home)), open_device_store(home) as store:
        waiting = sum(record.state == "sending" for record in store.rounds())
        merged = sum(record.state == "counted" for record in store.rounds())
        if not store.is_member:
            if not everything:
                _ = store.membership  # which says that there is none, and what to do
            _erase(home, store)
            return Parted("", told=False, why="", erased=True, merged=0, withdrawn=0)
        name = store.membership.charter.name
        begun = begin(store, erase=everything)
        why = "" if begun.told else _tell(home, store, begun, patience)
        now = farewell(store) or begun
        if everything:
            _erase(home, store)
        elif now.told:
            save_farewell(store, now.model_copy(update={"done": True}))
        else:
            raise BrokerUnreachableError(
                f"this device takes no part in {name!r} any more, but the hub does not know yet: {why}",
                advice="Run `bramble leave` again later. `bramble leave --erase` removes the device here in any case.",
            )
    return Parted(name, told=now.told, why=why, erased=everything, merged=merged, withdrawn=waiting)


def _existing(home: Home) -> Home:
    if not home.database.is_file():
        raise NotInitialisedError(
            f"there is no device in {home.root}", advice="Nothing is to be left here. Or pass --home."
        )
    return home


def _tell(home: Home, store: DeviceStore, begun: Farewell, patience: float) -> str:
    """Tell the hub; give what stood in the way, if anything did."""
    try:
        identity = keyfile.load(home.keys)
    except StateError as error:  # they were removed already, by an attempt that was killed
        return f"its keys are gone: {error}"
    link = device_link(store, identity, patient=False)
    said = run_until_signalled(tell(store, identity, link, begun, patience=patience))
    return "it was interrupted" if said is None else said


def _erase(home: Home, store: DeviceStore) -> None:
    with contextlib.suppress(StateError):
        kept = keyfile.read(home.keys, "device")
        if kept.protection == "keyring":
            forget_keyring_key(kept.public.id)
    erase(home, store)
