"""The charter that the owner agreed to, and the one that the hub shows now. They differ only until the owner decides.

A device does what its owner agreed to when it joined, whatever the hub publishes later. Another charter is kept beside
it, the device pauses and says why, and `bramble charter --accept` puts it in the place of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.crypto import canonical
from agent.errors import NotJoinedError
from agent.federation.messages import MAX_BODY_BYTES, CharterNotice
from agent.federation.store import DeviceStore, Membership
from agent.governance.charter import Charter

_KEY = "charter-offered"


@dataclass(frozen=True, slots=True)
class Offered:
    """A charter that the hub shows and the owner has not agreed to.

    Attributes:
        counter: of the envelope that it came in.
    """

    counter: int
    charter: Charter


def offered(store: DeviceStore) -> Offered | None:
    """Give the charter that waits for the owner's word, if one does."""
    kept = store.fact(_KEY)
    if not kept:
        return None
    match canonical.decode(kept, max_bytes=MAX_BODY_BYTES + 64):
        case [int(counter), bytes(body)]:
            return Offered(counter, CharterNotice.decode(body).charter)
        case _:
            return None


def note(store: DeviceStore, counter: int, charter: Charter) -> bool:
    """Keep what the hub shows where the owner has not agreed to it, and say whether that is so."""
    waits, agreed = offered(store), store.membership.charter
    if charter == agreed:
        if waits is not None:
            store.set_fact(_KEY, b"")
        return False
    if waits is None or waits.charter != charter:
        store.set_fact(_KEY, canonical.encode([counter, CharterNotice(charter=charter).encode()]))
    return True


def accept(store: DeviceStore, base: Path) -> Membership:
    """Put the offered charter in the place of the agreed one; what was learned under that is not gone on with.

    Args:
        store: of a device that does not run.
        base: the GGUF on this machine that the new charter names.

    Raises:
        NotJoinedError: nothing waits to be accepted.
    """
    waits = offered(store)
    if waits is None:
        raise NotJoinedError(
            "the hub shows no other charter than the one you agreed to", advice="There is nothing to accept."
        )
    membership = store.membership.model_copy(update={"charter": waits.charter, "base": base})
    with store.transaction():
        store.put_fact("membership", membership.model_dump_json().encode())
        store.put_fact(_KEY, b"")
        store.forget_training()
    return membership


def differences(agreed: Charter, other: Charter) -> list[tuple[str, Any, Any]]:
    """Give what two charters say differently: (field, agreed, other), in the order of the charter's fields."""
    before, after = _flat(agreed.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    names = dict.fromkeys((*before, *after))
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found.update(_flat(item, f"{prefix}{name}."))
        else:
            found[prefix + name] = item
    return found
