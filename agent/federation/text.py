"""The owner's text as windows of tokens, made anew only when the text has changed."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.errors import NoTextError
from agent.federation.store import DeviceStore, Membership
from agent.paths import write_atomically
from agent.settings import DeviceSettings
from agent.training.job import PrepareJob, Progress
from agent.training.process import Workers, run_worker

_FORM = 2
"""How windows are made and kept; another number where that changes, so that older ones are made anew."""


class PreparedText(BaseModel):
    """Windows on disk.

    Attributes:
        train: ``.npz`` of the windows to train on.
        heldout: ``.npz`` of the windows to judge by, never trained on.
    """

    model_config = ConfigDict(frozen=True)

    train: Path
    heldout: Path
    train_windows: int
    heldout_windows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TextRoom:
    """Where the windows of one state of the text lie."""

    directory: Path

    @property
    def index(self) -> Path:
        """Written last: its presence says that the windows are whole."""
        return self.directory / "prepared.json"


async def prepare_text(
    store: DeviceStore,
    membership: Membership,
    settings: DeviceSettings,
    sources: Iterable[Path],
    *,
    workers: Workers = run_worker,
    on_progress: Callable[[Progress], None] | None = None,
) -> PreparedText:
    """Give the windows of the owner's text, made by ``workers`` where they are not here yet.

    Raises:
        NoTextError: there is no source, or too little text in them.
    """
    paths = tuple(sorted(sources))
    if not paths:
        raise NoTextError("no text was added yet", advice="Add some with `bramble data add PATH`.")
    window = membership.charter.training.window
    state = await asyncio.to_thread(_fingerprint, paths)
    key = hashlib.sha256(
        f"{_FORM}\0{state}\0{window}\0{settings.holdout_fraction}\0{settings.filter_secrets}"
        f"\0{membership.charter.base_sha256}".encode()
    ).hexdigest()[:16]
    room = TextRoom(store.home.work / "windows" / key)
    known = _read(room)
    if known is not None:
        return known
    room.directory.mkdir(parents=True, exist_ok=True)
    job = PrepareJob(
        base_path=membership.base,
        threads=settings.threads,
        sources=paths,
        out_dir=room.directory,
        window=window,
        holdout_fraction=settings.holdout_fraction,
        filter_secrets=settings.filter_secrets,
    )
    result = await workers(job, on_progress=on_progress)
    prepared = PreparedText(
        train=result.train_path,
        heldout=result.heldout_path,
        train_windows=result.train_windows,
        heldout_windows=result.heldout_windows,
        tokens=result.tokens,
    )
    write_atomically(room.index, prepared.model_dump_json().encode())
    for other in room.directory.parent.iterdir():
        if other != room.directory:
            shutil.rmtree(other, ignore_errors=True)
    return prepared


def _read(room: TextRoom) -> PreparedText | None:
    try:
        prepared = PreparedText.model_validate_json(room.index.read_bytes())
    except (OSError, ValidationError):
        return None
    return prepared if prepared.train.is_file() and prepared.heldout.is_file() else None


def _fingerprint(paths: Iterable[Path]) -> str:
    """Hash names, sizes and times of all files, to see a change without reading them."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            try:
                found = file.stat()
            except OSError:
                continue
            digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
