"""The adapters that lie on a device, by name: community releases, what was trained last, and the personal one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.data.consent import ConsentBook
from agent.device.machine import this_machine
from agent.errors import AdapterError, NotInitialisedError, NotJoinedError
from agent.federation.judging import AdapterFiles, measure
from agent.federation.store import DeviceStore, Membership, open_device_store
from agent.federation.text import prepare_text
from agent.llm.adapter import Adapter
from agent.llm.adapter_files import read_any_adapter
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.paths import BlobStore, Home, explained_disk
from agent.settings import load_settings
from agent.training.job import EvaluateResult, Progress

SHORTEST_PREFIX = 6
"""Digits of a SHA-256 that are enough to mean one adapter."""


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """One adapter on this device.

    Attributes:
        name: what commands call it: ``community`` for the release in use, ``release-N``, ``trained``, ``personal``.
        kind: whose it is; what was trained last and the personal one belong to the owner alone.
        sha256: of the file.
        path: the file: safetensors, or for the personal one GGUF.
        release: its number, where it is one; for the personal one, the release that it goes on top of.
        since: Unix time at which it came into use or was made, seconds; None where that is not known.
    """

    name: str
    kind: Literal["community", "trained", "personal"]
    sha256: str
    path: Path
    release: int | None
    since: int | None


@dataclass(frozen=True, slots=True)
class ChosenAdapter:
    """An adapter that somebody named, read into memory.

    Attributes:
        name: of the file, or as :class:`KeptAdapter` calls it.
        adapter: its numbers.
        base: its base on this machine; None where no device and no option named one.
        kept: its place on this device; None for any other file.
        beneath: the adapters that it goes on top of.
    """

    name: str
    adapter: Adapter
    base: Path | None
    kept: KeptAdapter | None
    beneath: tuple[Path, ...] = ()


def kept_adapters(home: Home) -> tuple[Membership, list[KeptAdapter]]:
    """Give the adapters of a device, oldest release first.

    Raises:
        NotInitialisedError, NotJoinedError: there is no device, or it is in no community.
    """
    with open_device_store(home) as store:
        return store.membership, list(_kept(store))


def _kept(store: DeviceStore) -> Iterator[KeptAdapter]:
    blobs, adopted = BlobStore(store.home.blobs), store.adopted()
    in_use = adopted[0] if adopted else None
    for row in store.releases():
        if blobs.has(row.sha256):
            name = "community" if adopted == (row.number, row.sha256) else f"release-{row.number}"
            yield KeptAdapter(name, "community", row.sha256, blobs.path(row.sha256), row.number, row.at)
    rounds = store.rounds()
    trained = str(rounds[-1].report.get("trained", "")) if rounds else ""
    if trained and blobs.has(trained):
        path = blobs.path(trained)
        yield KeptAdapter("trained", "trained", trained, path, None, int(path.stat().st_mtime))
    personal = AdapterFiles(store=store, base=store.membership.base).personal
    if personal.is_file():
        with explained_disk(personal), personal.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        yield KeptAdapter("personal", "personal", sha256, personal, in_use, int(personal.stat().st_mtime))


def choose_adapter(home: Home, which: str, *, base: Path | None = None) -> ChosenAdapter:
    """Read the adapter that a word on the command line means: a name on this device, a SHA-256, or a file.

    Args:
        home: of the device, which need not exist where ``which`` is a file.
        which: ``community``, ``personal``, ``trained``, ``release-N``, the beginning of a SHA-256, or a path.
        base: the adapter's base; the community's if None.

    Raises:
        AdapterError: nothing here is meant by it, or it cannot be read.
    """
    membership: Membership | None = None
    kept: list[KeptAdapter] = []
    with contextlib.suppress(NotInitialisedError, NotJoinedError):
        membership, kept = kept_adapters(home)
    found = [row for row in kept if which in {row.name, f"release-{row.release}"} and row.kind != "personal"]
    found = found or [row for row in kept if which == row.name]
    if not found and len(which) >= SHORTEST_PREFIX:
        found = [row for row in kept if row.sha256.startswith(which)]
    if len(found) == 1 and membership is not None:
        row, own = found[0], base or membership.base
        beneath = tuple(other.path for other in kept if other.name == "community") if row.kind == "personal" else ()
        return ChosenAdapter(row.name, read_any_adapter(row.path, own), own, row, beneath)
    own_base = base or (membership.base if membership else None)
    path = Path(which)
    if path.exists():
        name = path.name if path.is_dir() else path.stem
        return ChosenAdapter(name, read_any_adapter(path, own_base), own_base, None)
    names = ", ".join(row.name for row in kept) or "none yet"
    raise AdapterError(
        f"{which!r} is no adapter of this device and no file", advice=f"Adapters here: {names}. Or give a path."
    )


async def heldout_losses(
    home: Home,
    adapters: Mapping[str, ChosenAdapter | None],
    *,
    room: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> EvaluateResult:
    """Measure adapters on the text that this device held back, by llama.cpp.

    Args:
        home: of a device in a community.
        adapters: by the name that the result shall have; None for the base alone.
        room: a directory for their GGUF forms.
        on_progress: hears of every window.

    Raises:
        NotJoinedError: there is no community, and so no base and no windows.
        NoTextError: no text was added.
        AdapterError: an adapter belongs to another base.
    """
    with open_device_store(home) as store:
        membership = store.membership
        settings = load_settings(home.settings, over=this_machine(home).training_settings())
        sources = [row.path for row in ConsentBook(store.connection).sources()]
        base = open_gguf(membership.base)
        variants: dict[str, tuple[Path, ...]] = {}
        for name, chosen in adapters.items():
            layers: Sequence[Adapter] = () if chosen is None else _layers(chosen, membership)
            paths = [room / f"{len(variants)}-{index}.gguf" for index in range(len(layers))]
            for adapter, path in zip(layers, paths, strict=True):
                write_gguf_adapter(adapter, base, path)
            variants[name] = tuple(paths)
        text = await prepare_text(store, membership, settings, sources, on_progress=on_progress)
        return await measure(membership, settings, text, variants, on_progress=on_progress)


def _layers(chosen: ChosenAdapter, membership: Membership) -> list[Adapter]:
    """Give the adapters that make a model together, which must all belong to the community's base."""
    if chosen.adapter.base_sha256 != membership.charter.base_sha256:
        raise AdapterError(
            f"{chosen.name} belongs to the base {chosen.adapter.base_sha256[:16]}…, and this device's text was prepared"
            f" for {membership.charter.base_sha256[:16]}…",
            advice="Leave --heldout away to compare the products alone.",
        )
    return [*(read_any_adapter(path, membership.base) for path in chosen.beneath), chosen.adapter]
