"""What the hub remembers, in one database: its configuration, and the books of members, rounds and releases.

Every public method is one transaction. Whoever kills the hub between two of them finds it, at the next start, exactly
after the first.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from agent.errors import NotInitialisedError
from agent.federation.messages import Admission
from agent.governance.charter import Charter
from agent.hub.conduct import ConductBook
from agent.hub.database import make_engine
from agent.hub.members import DeviceRow, Members
from agent.hub.migrations import bring_up_to_date
from agent.hub.release_book import ReleaseBook, ReleaseRow
from agent.hub.round_book import RoundBook, UpdateRow
from agent.paths import BlobStore, Home

__all__ = ["DeviceRow", "HubConfig", "HubStore", "ReleaseRow", "UpdateRow", "create_store", "hub_blobs", "open_store"]


class HubConfig(BaseModel):
    """What `bramble hub init` fixed for a community.

    Attributes:
        community: hex of the 16-byte id.
        broker: URL that the hub uses; its port is filled in when the embedded broker first starts.
        device_broker: URL that invites carry; empty where it is the same.
        member_broker: URL that a device is given when it is let in; empty where it is the invite's.
        certificates: the broker is known by the community's certificate authority, and knows members by it.
        certificate_seconds: how long a device's certificate is good for.
        broker_directory: where the broker's files were written last.
        embedded: the hub runs the broker itself, on loopback.
        allow_plaintext: an unencrypted broker on another machine was asked for explicitly.
        heartbeat_seconds: how often the retained messages are published again, in case one was damaged or lost.
        broker_secret: hex; what the embedded broker's passwords are derived from.
        last_round: after which the community closes; none for never.
        admission: whether whoever holds an invite is let in at once, or when a steward has approved.
        operator: who runs the hub, in the operator's own words; newcomers see it.
        keep_releases: how many of the newest releases are kept, with what their merges left over, to go back to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    community: str
    broker: str
    device_broker: str = ""
    member_broker: str = ""
    certificates: bool = False
    certificate_seconds: float = Field(default=30 * 86_400.0, gt=0)
    broker_directory: str = ""
    embedded: bool
    allow_plaintext: bool = False
    heartbeat_seconds: float = 60.0
    broker_secret: str
    base_path: str
    last_round: int | None
    keep_releases: int = Field(default=10, ge=1)
    admission: Admission = "automatic"
    operator: str = Field(default="", max_length=200)
    charter: Charter

    @property
    def releases_kept(self) -> int:
        """How many releases are kept: also every one that an update may have started from."""
        return max(self.keep_releases, self.charter.rounds.max_staleness + 1)


class HubStore(Members, ConductBook, RoundBook, ReleaseBook):
    """The hub's database. A context manager; use :func:`create_store` or :func:`open_store`."""

    @property
    def config(self) -> HubConfig:
        """What the hub was set up with."""
        raw = self.fact("config")
        if raw is None:
            raise NotInitialisedError(
                f"there is no hub in {self.home.root}", advice="Create one with `bramble hub init`, or pass --home."
            )
        return HubConfig.model_validate_json(raw)

    def save_config(self, config: HubConfig) -> None:
        """Replace what the hub was set up with."""
        self.set_fact("config", config.model_dump_json().encode())

    def change_config(self, **changes: object) -> HubConfig:
        """Change some of what the hub was set up with, and leave the rest as it is now."""
        with self.transaction():
            changed = self.config.model_copy(update=changes)
            self.save_config(changed)
        return changed


def hub_blobs(home: Home) -> BlobStore:
    """Give a hub's adapters, carries and updates. A device has the hub to fetch them from, a hub has nobody."""
    return BlobStore(
        home.blobs,
        lost=f"Check the disk. Then restore {home.root} from a backup, or go back to a release that is whole with "
        "`bramble hub rollback`.",
    )


def create_store(home: Home, *, url: str | None = None) -> HubStore:
    """Make the tables of a new hub."""
    store = HubStore(make_engine(home, url), home=home)
    try:
        store.create_tables()
    except BaseException:
        store.close()
        raise
    return store


def open_store(home: Home, *, url: str | None = None) -> HubStore:
    """Open a hub's database, bringing an older schema up to date.

    Raises:
        NotInitialisedError: there is none.
        StateError: it was written by a newer version.
    """
    if url is None and not Path(home.database).is_file():
        raise NotInitialisedError(
            f"there is no hub in {home.root}", advice="Create one with `bramble hub init`, or pass --home."
        )
    store = HubStore(make_engine(home, url), home=home)
    try:
        bring_up_to_date(store)
    except BaseException:
        store.close()
        raise
    return store
