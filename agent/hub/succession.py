"""The hub changes its keys, and tells everybody who pinned the old ones. Killed anywhere, it goes on where it was.

The new keys wait in a file of their own until it is written down that they come after the old ones; then the file takes
its place. Invites that were given out before stay good, for the card tells how the keys that they pin lead to these.
"""

from __future__ import annotations

from agent.crypto import canonical, keyfile
from agent.crypto.identity import Identity
from agent.crypto.succession import MAX_LINKS, Succession
from agent.errors import NotInitialisedError
from agent.hub.store import HubStore

_FACT = "successions"


def successions(store: HubStore) -> list[bytes]:
    """Give how the keys came after one another, oldest first."""
    raw = store.fact(_FACT)
    found = canonical.decode(raw, max_bytes=64 * 1024) if raw else []
    return [link for link in found if isinstance(link, bytes)] if isinstance(found, list) else []


def write_down(store: HubStore, old: Identity, new: Identity) -> None:
    """Write down that the new keys come after the old ones: from then on there is no way back."""
    link = Succession.make(bytes.fromhex(store.config.community), old, new).encode()
    with store.transaction():
        store.set_fact(_FACT, canonical.encode([*successions(store), link][-MAX_LINKS:]))


def finish(store: HubStore) -> bool:
    """Put new keys in their place that were written down; False where there are none."""
    links = successions(store)
    try:
        waiting = keyfile.read(store.home.keys, "hub", name=keyfile.NEXT_FILE).public
    except NotInitialisedError:
        return False
    if not links or Succession.decode(links[-1]).new != waiting:
        return False
    keyfile.succeed(store.home.keys)
    return True
