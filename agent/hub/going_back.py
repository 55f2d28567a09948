"""What `bramble hub rollback` does: it goes back to an earlier release, whether the hub runs at this moment or not."""

from __future__ import annotations

import getpass

from agent.hub.release_book import RolledBack
from agent.hub.store import open_store
from agent.paths import Home


def roll_back(home: Home, number: int) -> RolledBack:
    """Make an earlier release the one that stands.

    It is one transaction on the hub's database. A hub that runs looks there before everything it does, and goes on from
    what it finds: it ends the round and announces the release, and devices follow.

    Raises:
        NotInitialisedError: there is no hub.
        StateError: there is no such release, it is not kept, was withdrawn, or stands already.
    """
    with open_store(home) as store:
        config = store.config
        late = config.charter.rounds.max_staleness
        return store.roll_back(number, by=getpass.getuser(), oldest_after=late, last_round=config.last_round)
