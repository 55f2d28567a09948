"""How a device or a hub is made, so that an attempt that failed half-way can simply be made again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from agent.crypto.identity import Identity, Role
from agent.errors import AlreadyInitialisedError
from agent.paths import Home


def make_keys(home: Home, role: Role) -> Identity:
    """Give fresh keys, on the disk; those of an earlier attempt where it got no further than that."""
    identity = Identity.generate(role)
    try:
        identity.save(home.keys)
    except AlreadyInitialisedError:
        return Identity.load(home.keys, role)
    return identity


@contextlib.contextmanager
def whole_database(home: Home) -> Iterator[None]:
    """Make the database inside; when that fails, no half of one is left behind."""
    try:
        yield
    except BaseException:
        for file in home.root.glob(f"{home.database.name}*"):
            file.unlink(missing_ok=True)
        raise
