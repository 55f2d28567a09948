"""A device put together from its state directory: what the command line starts and asks. No model, no torch in here."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.crypto import keyfile
from agent.crypto.identity import Identity
from agent.data.consent import ConsentBook
from agent.data.documents import Survey
from agent.device.machine import this_machine
from agent.errors import (
    AlreadyInitialisedError,
    BaseMismatchError,
    BrambleError,
    LeavingError,
    ModelError,
    NotInitialisedError,
    UnreadableModelError,
)
from agent.events import Events
from agent.federation import agreed
from agent.federation.credentials import Credentials, client_id, member_tls
from agent.federation.device import Device
from agent.federation.making import make_keys, whole_database
from agent.federation.standing import (
    Application,
    application,
    farewell,
    require_part,
    revoked,
)
from agent.federation.store import DeviceStore, Membership, open_device_store
from agent.federation.succession import finish
from agent.governance.charter import Charter
from agent.llm.gguf_file import open_gguf, sha256_file
from agent.llm.seedling import SEEDLING_PATH
from agent.llm.shelf import Shelf, ShelfModel
from agent.paths import BlobStore, Home, exclusive, explained_disk, in_use, write_atomically
from agent.running import run_until_signalled
from agent.settings import DeviceSettings, load_settings, mqtt_protocol
from agent.training.process import Workers, run_worker
from agent.transport.address import without_credentials
from agent.transport.mqtt import MqttLink
from agent.transport.tls import Tls


@dataclass(frozen=True, slots=True)
class NewDevice:
    """What `bramble init` made."""

    device: str
    short_id: str
    profile: str
    profile_title: str
    reasons: tuple[str, ...]
    threads: int

    def as_dict(self) -> dict[str, object]:
        """Give it for programs."""
        return {
            "device": self.device,
            "profile": self.profile,
            "reasons": list(self.reasons),
            "threads": self.threads,
        }


def create_device(home: Home, *, nickname: str = "") -> NewDevice:
    """Make keys, directories and settings for a device.

    Raises:
        AlreadyInitialisedError: there is one already; nothing is changed.
    """
    if home.database.exists():
        raise AlreadyInitialisedError(
            f"there is a device or hub in {home.root} already",
            advice="Use it, or choose another directory with --home. Nothing was changed.",
        )
    home.create()
    machine = this_machine(home)
    profile, threads = machine.profile, machine.budget.threads
    lines = [
        "# Settings of this device's owner. What is not here is as the machine's profile says: bramble device show",
        f"# threads = {threads}    # cores that training may use",
        f"# memory_mb = {machine.budget.memory_mb}    # memory that it may take, MiB",
        f'nickname = "{_toml(nickname)}"',
    ]
    write_atomically(home.settings, ("\n".join(lines) + "\n").encode())
    identity = make_keys(home, "device")
    with whole_database(home), open_device_store(home, create=True):
        pass
    return NewDevice(
        device=identity.id,
        short_id=identity.short_id,
        profile=profile.name,
        profile_title=profile.title,
        reasons=machine.recognised.reasons,
        threads=threads,
    )


def _toml(text: str) -> str:
    """Escape a nickname for a basic TOML string."""
    return "".join(letter for letter in text if letter.isprintable()).replace("\\", "\\\\").replace('"', '\\"')[:64]


def find_base(charter: Charter, path: Path | None) -> Path:
    """Give the file that is the community's base.

    Raises:
        BaseMismatchError: the file given, or the seedling, is another one.
        ModelError: the file cannot be read as a GGUF.
    """
    candidate = path or SEEDLING_PATH
    open_gguf(candidate)
    found = sha256_file(candidate)
    if found == charter.base_sha256:
        return candidate.resolve()
    what = f"{candidate} has SHA-256 {found[:16]}…" if path else "the base is not the seedling that comes with Bramble"
    raise BaseMismatchError(
        f"{what}; the community trains {charter.base_name} with SHA-256 {charter.base_sha256[:16]}…",
        advice=f"Get that exact file ({charter.base_bytes:,} bytes): put it on the shelf with `bramble model import`"
        " or `bramble model pull`, or join with --base PATH.",
    )


def settings_of(home: Home, **command_line: object) -> DeviceSettings:
    """Give a device's settings with the command line on top, and what its machine's profile says about rounds beneath.

    Raises:
        SettingsError: a profile or a setting cannot be used.
    """
    return load_settings(home.settings, over=this_machine(home).round_settings(), command_line=command_line)


def device_link(store: DeviceStore, identity: Identity, *, patient: bool) -> MqttLink:
    """Give a member's link to its broker, not yet connected; a patient one waits for a broker that is away."""
    membership = store.membership
    return MqttLink(
        url=membership.broker,
        client_id=client_id(identity, membership.community),
        username=membership.username or None,
        password=membership.password or None,
        protocol=mqtt_protocol(),
        allow_plaintext=membership.allow_plaintext,
        tls=partial(member_tls, Credentials(store.home.keys, identity.id), membership),
        patient=patient,
    )


def build_device(
    store: DeviceStore, identity: Identity, settings: DeviceSettings, *, events: Events, workers: Workers = run_worker
) -> Device:
    """Put a device together: the one way in."""
    membership = store.membership
    link = device_link(store, identity, patient=True)

    def door() -> MqttLink:
        return MqttLink(
            url=membership.door,
            client_id=identity.id,
            session_seconds=0,
            protocol=mqtt_protocol(),
            allow_plaintext=membership.allow_plaintext,
            tls=partial(Tls, authority=membership.authority or None),
        )

    return Device(
        store=store,
        identity=identity,
        settings=settings,
        link=link,
        events=events,
        workers=workers,
        door=door if membership.door else None,
    )


def run_device(
    home: Home,
    *,
    events: Events,
    threads: int | None = None,
    with_parent: bool = False,
    workers: Workers = run_worker,
) -> None:
    """Take part until SIGINT or SIGTERM, or ``with_parent`` until standard input ends; ``workers`` do the jobs.

    Raises:
        AlreadyRunningError: an agent runs on this directory already.
        NotJoinedError: there is no community yet.
        BaseMismatchError: the base changed since joining.
    """
    settings = settings_of(home, threads=threads)
    with open_device_store(home) as store, exclusive(home):
        home.remove_unfinished()
        _take_new_keys(store)
        identity = Identity.load(home.keys)
        require_part(store)
        membership = store.membership
        if not membership.base.is_file():
            raise UnreadableModelError(
                f"the base {membership.base} is gone", advice="Put it back, or join again with --base PATH."
            )
        find_base(membership.charter, membership.base)
        try:
            device = build_device(store, identity, settings, events=events, workers=workers)
            run_until_signalled(device.run(), with_parent=with_parent)
        finally:
            with contextlib.suppress(Exception):
                store.save_status({"state": "stopped", "reason": "not running", "since": int(time.time())})


def _take_new_keys(store: DeviceStore) -> None:
    """Finish a change of keys that the hub has agreed to.

    Raises:
        LeavingError: it may have, and has not said so yet: it is to be asked again.
    """
    if not finish(store) and (store.home.keys / keyfile.NEXT_FILE).exists():
        raise LeavingError(
            "a change of this device's keys was begun and not finished", advice="Finish it: bramble key rotate"
        )


def device_status(home: Home) -> dict[str, object]:
    """Say what a device is doing and why; works whether it runs or not."""
    public = keyfile.read(home.keys, "device").public  # no passphrase is needed to say who this is
    with open_device_store(home) as store:
        running = in_use(home)
        status = store.status
        if not running:
            status = {"state": "stopped", "reason": "start it with `bramble run`"}
        elif not status:
            status = {"state": "starting", "reason": "starting"}
        found: dict[str, object] = {
            "device": public.id,
            "running": running,
            "state": status["state"],
            "reason": status["reason"],
        }
        if not store.is_member:
            waiting = application(store)
            why = "no community yet: `bramble join INVITE`" if waiting is None else _waits(waiting)
            return {**found, "community": None, "standing": "pending" if waiting else None, "reason": why, "rounds": []}
        standing = _standing(store)
        if standing != "member":
            found["state"] = "stopped"
            found["reason"] = _why_out(store)
        membership, adopted, seen = store.membership, store.adopted(), store.announcement
        return {
            **found,
            "community": membership.charter.name,
            "standing": standing,
            "broker": without_credentials(membership.broker),
            "connected_to": (status.get("connected_to") if running else None) or None,
            **({"not_arriving": status["not_arriving"]} if running and status.get("not_arriving") else {}),
            **({"clock": status["clock"]} if running and status.get("clock") else {}),
            "refused": (status.get("refused") if running else None) or {},
            "base": str(membership.base),
            "release": adopted[0] if adopted else None,
            "round": seen.round if seen else None,
            "phase": seen.phase if seen else None,
            "rounds": [record.model_dump() for record in store.rounds()],
        }


def _waits(waiting: Application) -> str:
    return f"asked to join {waiting.charter.name!r}, and waits for a steward: run `bramble join` again later"


def _standing(store: DeviceStore) -> str:
    """Say in a word where a member stands, as far as it knows."""
    if revoked(store) is not None:
        return "revoked"
    gone = farewell(store)
    return "member" if gone is None else "left" if gone.done else "leaving"


def _why_out(store: DeviceStore) -> str:
    try:
        require_part(store)
    except BrambleError as error:
        return f"{error}. {error.advice}"
    return ""


def charter_review(home: Home) -> tuple[Charter, Charter | None]:
    """Give the charter that the owner agreed to, and another one that the hub shows since, if it does."""
    with open_device_store(home) as store:
        waits = agreed.offered(store)
        return store.membership.charter, waits.charter if waits else None


def accept_charter(home: Home) -> Membership:
    """Agree to the charter that the hub shows now.

    Raises:
        AlreadyRunningError: the agent runs; it is to be started again with the new charter.
        NotJoinedError: nothing waits to be agreed to.
        BaseMismatchError: it trains another base, which is not on this machine.
    """
    with open_device_store(home) as store, exclusive(home):
        waits, membership = agreed.offered(store), store.membership
        charter = waits.charter if waits else membership.charter
        base = find_base(charter, base_on_shelf(home, charter.base_sha256) or membership.base)
        accepted = agreed.accept(store, base)
        for made in home.work.glob("round-*"):
            shutil.rmtree(made, ignore_errors=True)
    return accepted


def add_source(home: Home, path: Path, survey: Survey) -> None:
    """Write down the owner's consent to learn from ``path``."""
    with open_device_store(home) as store, store.transaction():
        ConsentBook(store.connection).grant(path, survey, granted_by=getpass.getuser())


def remove_source(home: Home, path: Path) -> None:
    """Withdraw consent: what was learned and not sent yet is not sent, and what was made from the text is removed."""
    with open_device_store(home) as store:
        kept = store.kept_blobs()
        with store.transaction():
            ConsentBook(store.connection).withdraw(path)
            store.withdraw_unsent()
    for sha256 in kept:
        BlobStore(home.blobs).discard(sha256)
    with explained_disk(home.work):
        for made in (home.work / "windows", home.work / "adapters", *home.work.glob("round-*")):
            shutil.rmtree(made, ignore_errors=True)


def sources(home: Home) -> list[dict[str, object]]:
    """List what may be learned from."""
    with open_device_store(home) as store:
        return [
            {
                "path": str(row.path),
                "at": time.strftime("%Y-%m-%d %H:%M", time.localtime(row.granted)),
                "by": row.granted_by,
                "files": row.files,
                "characters": row.characters,
            }
            for row in ConsentBook(store.connection).sources()
        ]


def shelf_of(home: Home) -> Shelf:
    """Give the base models of a device, which may lie there before the device was made."""
    return Shelf(home.models)


def named_base(home: Home, reference: str) -> Path:
    """Give the base that a word on the command line means: a file, or a name or SHA-256 on the shelf.

    Raises:
        UnreadableModelError: there is neither.
    """
    path = Path(reference)
    if path.exists() or path.parent != Path():
        return path
    if path.suffix == ".gguf" and not any(model.name == reference for model in shelf_of(home).models()):
        return path
    return shelf_of(home).find(reference).path


def remove_model(home: Home, reference: str) -> ShelfModel:
    """Take a model off the shelf.

    Raises:
        UnreadableModelError: there is no such model.
        ModelError: it is the base of the community that this device belongs to.
    """
    model = shelf_of(home).find(reference)
    if home.database.is_file():
        with open_device_store(home) as store:
            if store.is_member and _is_needed(store.membership, model):
                raise ModelError(
                    f"{model.name} is the base of {store.membership.charter.name!r}, which this device belongs to",
                    advice="Keep it: without it the device cannot train, judge or answer. Nothing was removed.",
                )
    shelf_of(home).remove(model)
    return model


def _is_needed(membership: Membership, model: ShelfModel) -> bool:
    return model.sha256 == membership.charter.base_sha256 and membership.base.resolve() == model.path.resolve()


def base_on_shelf(home: Home, sha256: str) -> Path | None:
    """Give the base of this SHA-256, if it lies on the shelf."""
    model = shelf_of(home).holding(sha256)
    return model.path if model else None


def adapters_of(home: Home) -> tuple[Membership, dict[str, list[Path]]]:
    """Give the base and, by name, the GGUF adapters that `bramble chat` can put on it.

    Raises:
        NotInitialisedError: there is no device here.
    """
    from agent.federation.judging import AdapterFiles  # noqa: PLC0415 (numpy and gguf: not for the daemon's start)

    if not home.database.is_file():
        raise NotInitialisedError(f"there is no device in {home.root}", advice="Create one with `bramble init`.")
    with open_device_store(home) as store:
        membership, adopted = store.membership, store.adopted()
        files = AdapterFiles(store=store, base=membership.base)
        found: dict[str, list[Path]] = {"base": []}
        if adopted is not None:
            found["community"] = [files.gguf(adopted[1])]
            if files.personal.is_file():
                found["personal"] = [files.gguf(adopted[1]), files.personal]
    return membership, found
