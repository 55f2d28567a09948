"""The embedded broker's rules at this moment: who may connect, and what a device may hear that is no member any more.

The rules that follow from a user's name are in :mod:`agent.transport.access`. What stewards decide comes from the hub's
database, looked at once a second, so the fence moves with the book of members. What counts stays what it was: the hub
refuses what is not a member's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.crypto.passwords import check_password
from agent.hub.store import HubStore
from agent.transport.access import JOIN_PREFIX, Action, allowed, covers
from agent.transport.topics import ROOT

LOOK_SECONDS = 1.0


class Fence:
    """Decides for the embedded broker.

    Args:
        store: the hub's, which is read and never changed here.
        clock: Unix time, seconds.
    """

    def __init__(self, store: HubStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        config = store.config
        self._secret = bytes.fromhex(config.broker_secret)
        self._community = config.community
        self._outsiders: frozenset[str] = frozenset()
        self._looked: float | None = None

    def authenticate(self, user: str, password: str) -> bool:
        """Say whether somebody may connect: with the right password, and to the door only while it is open."""
        if not check_password(self._secret, user, password):
            return False
        if user.startswith(JOIN_PREFIX):
            return self._store.door_is_open(user.removeprefix(JOIN_PREFIX), now=self._clock())
        return True

    def allowed(self, user: str, action: Action, topic: str) -> bool:
        """Say whether a user may do this now.

        Who is out hears what the hub says to it alone: that it is out, and why. It may ask, for its answer may be lost.
        """
        if not allowed(user, action, topic, self._community):
            return False
        if action == "subscribe" or user not in self._out():
            return True
        room = "from" if action == "publish" else "to"
        return covers(f"{ROOT}/{self._community}/{room}/{user}/+", topic)

    def _out(self) -> frozenset[str]:
        now = self._clock()
        if self._looked is None or not 0 <= now - self._looked < LOOK_SECONDS:
            self._outsiders, self._looked = self._store.outsiders(), now
        return self._outsiders
