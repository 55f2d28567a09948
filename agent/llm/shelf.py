"""The shelf: base models of one device, each a file named by its SHA-256, with a name that people can remember.

``DIRECTORY/<sha256>.gguf`` is the model, ``DIRECTORY/<sha256>.json`` its name and where it came from. The model gets
its place first, so a crash leaves at most a model without a name, which the next import of the same file mends. What
is unfinished has a name that begins with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.errors import DiskFullError, ModelError, UnreadableModelError
from agent.llm.gguf_file import sha256_file
from agent.paths import SCARCE_BYTES, explained_disk, sync_directory, write_atomically

STALE_SECONDS = 24 * 3600.0
"""Unfinished files that nobody has written to for so long belong to nobody."""

STALE_DOWNLOAD_SECONDS = 30 * 24 * 3600.0
"""A download that was interrupted can go on for so long."""

SHORTEST_PREFIX = 6
"""Digits of a SHA-256 that are enough to mean one model."""

_NAME = re.compile(r"[\w][\w.+@ -]{0,127}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FICLONE = 0x4004_9409  # linux/fs.h: share the blocks of another file, which are copied only when one is written
_NO_CLONES = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}


class ShelfRecord(BaseModel):
    """What is known of a model beyond its bytes.

    Attributes:
        name: unique on this shelf.
        origin: the file or repository it came from.
        added: Unix time, seconds.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    origin: str = ""
    added: int = 0


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """One model on the shelf.

    Attributes:
        sha256: hex, of the file when it was put there.
        path: the file.
        record: its name and origin.
    """

    sha256: str
    path: Path
    record: ShelfRecord

    @property
    def name(self) -> str:
        """What people call it."""
        return self.record.name


class Shelf:
    """The models of one device.

    Args:
        directory: where they lie; made when the first one comes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def unfinished(self) -> Path:
        """Where downloads lie until they are whole."""
        return self.directory / ".unfinished"

    def create(self) -> None:
        """Make the directories, readable by their owner alone, and clear away what was left long ago."""
        with explained_disk(self.directory):
            for directory in (self.directory.parent, self.directory, self.unfinished):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()

    def models(self) -> list[ShelfModel]:
        """Give every model, by name."""
        with explained_disk(self.directory):
            paths = [path for path in self.directory.glob("*.gguf") if _SHA256.fullmatch(path.stem)]
        return sorted((self._model(path.stem) for path in paths), key=lambda model: model.name)

    def holding(self, sha256: str) -> ShelfModel | None:
        """Give the model with this hash, if it is here."""
        return self._model(sha256) if self._path(sha256).is_file() else None

    def name_of(self, path: Path) -> str | None:
        """Give the name of the model that lies at this path, if it is on the shelf."""
        return next((model.name for model in self.models() if model.path == path), None)

    def find(self, reference: str) -> ShelfModel:
        """Give the model that a name, or the beginning of a SHA-256, means.

        Raises:
            UnreadableModelError: none, or more than one.
        """
        models = self.models()
        found = [model for model in models if model.name == reference]
        if not found and len(reference) >= SHORTEST_PREFIX:
            found = [model for model in models if model.sha256.startswith(reference.lower())]
        if len(found) == 1:
            return found[0]
        names = ", ".join(model.name for model in models) or "nothing yet"
        what = "is no model" if not found else f"means {len(found)} models"
        raise UnreadableModelError(
            f"{reference!r} {what} on this device's shelf",
            advice=f"On the shelf: {names}. Put one there: bramble model import FILE, or bramble model pull REPO.",
        )

    def new_file(self) -> Path:
        """Give the path of a file to write here and hand to :meth:`put`, under a name that nothing else has."""
        return self.directory / f".{secrets.token_hex(8)}.gguf"

    def put(
        self,
        source: Path,
        *,
        name: str | None = None,
        stem: str | None = None,
        origin: str = "",
        sha256: str | None = None,
        take: bool = False,
    ) -> tuple[ShelfModel, bool]:
        """Put a checked GGUF on the shelf; putting the same one there again changes at most its name.

        Args:
            source: the file.
            name: for people; ``stem``, made unique, if None.
            stem: what to make a name of; the file's own name if None.
            origin: where it came from.
            sha256: of the file where it was just computed; None to compute it here.
            take: move the file instead of sharing or copying it.

        Returns:
            The model, and whether it is new here.

        Raises:
            ModelError: the name cannot be used.
            UnreadableModelError: the file cannot be read.
            DiskFullError: there is no room for a copy.
        """
        self.create()
        self._check_name(name)
        temporary = self.new_file()
        known = self.holding(sha256) if sha256 else None
        try:
            if known is None:
                _place(source.resolve(), temporary, take=take)
                sha256 = sha256 or sha256_file(temporary)  # of what lies here now, whatever happens to the source
                known = self.holding(sha256)
            assert sha256 is not None
            self._refuse_taken(name, sha256)
            new = known is None
            if new:
                with explained_disk(self._path(sha256)):
                    temporary.replace(self._path(sha256))
                    sync_directory(self.directory)
            elif take:
                source.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
        self._write_record(sha256, name, stem or source.stem, origin or str(source.resolve()), new=new)
        return self._model(sha256), new

    def remove(self, model: ShelfModel) -> None:
        """Take a model off the shelf. A file that was imported stays where it was."""
        with explained_disk(model.path):
            model.path.unlink(missing_ok=True)
            self._record(model.sha256).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Forget what was left unfinished long ago."""
        leftovers = [(path, STALE_SECONDS) for path in self.directory.glob(".*.gguf")]
        leftovers += [(path, STALE_DOWNLOAD_SECONDS) for path in self.unfinished.glob("*")]
        for path, seconds in leftovers:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - seconds:
                    path.unlink()

    def _path(self, sha256: str) -> Path:
        return self.directory / f"{sha256}.gguf"

    def _record(self, sha256: str) -> Path:
        return self.directory / f"{sha256}.json"

    def _model(self, sha256: str) -> ShelfModel:
        try:
            record = ShelfRecord.model_validate_json(self._record(sha256).read_bytes())
        except (OSError, ValidationError):
            record = ShelfRecord(name=sha256[:12])
        return ShelfModel(sha256=sha256, path=self._path(sha256), record=record)

    def _write_record(self, sha256: str, name: str | None, stem: str, origin: str, *, new: bool) -> None:
        """Give a model that has its place a name; one that has a name keeps it, unless another was asked for."""
        had = self._model(sha256).record
        if new or not had.added:
            had = ShelfRecord(name=name or self._free_name(stem, sha256), origin=origin, added=int(time.time()))
        elif name is None or name == had.name:
            return
        record = had.model_copy(update={"name": name or had.name})
        write_atomically(self._record(sha256), record.model_dump_json().encode())

    def _free_name(self, stem: str, sha256: str) -> str:
        """Give a file's name as one that can be used here and is nobody else's."""
        plain = re.sub(r"[^\w.+@-]+", "-", stem, flags=re.ASCII).strip("-.+@")[:100] or sha256[:12]
        taken = {model.name for model in self.models() if model.sha256 != sha256}
        return plain if plain not in taken else f"{plain}-{sha256[:8]}"

    def _check_name(self, name: str | None) -> None:
        if name is not None and not _NAME.fullmatch(name):
            raise ModelError(
                f"{name!r} cannot be the name of a model",
                advice="Use letters, digits and . _ + @ - in it, at most 128, beginning with a letter or a digit.",
            )

    def _refuse_taken(self, name: str | None, sha256: str) -> None:
        taken = [model for model in self.models() if model.name == name and model.sha256 != sha256]
        if taken:
            raise ModelError(
                f"another model on the shelf is called {name!r} (SHA-256 {taken[0].sha256[:16]}…)",
                advice=f"Choose another --name, or remove that one: bramble model remove {taken[0].sha256[:12]}",
            )


def check_room(directory: Path, size: int, *, what: str) -> None:
    """Check that a disk has room, before it is filled.

    Raises:
        DiskFullError: it has not.
    """
    with explained_disk(directory):
        free = shutil.disk_usage(directory).free
    if free < size + SCARCE_BYTES:
        raise DiskFullError(
            f"{what} takes {size / 1e6:,.1f} MB, and the disk of {directory} has {free / 1e6:,.1f} MB left",
            advice="Free some space on that disk, or use another one with --home. Nothing was written.",
        )


def _place(source: Path, target: Path, *, take: bool) -> None:
    """Give ``target`` the bytes of ``source``: moved, as a clone, as another name for the file, or copied."""
    with explained_disk(target):
        if take:
            with contextlib.suppress(OSError):  # on another disk
                source.replace(target)
                return
    try:
        size = source.stat().st_size
        with source.open("rb"):
            pass
    except OSError as cause:
        raise UnreadableModelError(
            f"cannot read the model {source}: {cause.strerror}", advice="Check the path and that you may read it."
        ) from cause
    if not (_clone(source, target) or _link(source, target)):
        check_room(target.parent, size, what=str(source))
        with explained_disk(target):
            shutil.copyfile(source, target)
            with target.open("rb+") as file:
                os.fsync(file.fileno())
    if take:
        source.unlink(missing_ok=True)


def _clone(source: Path, target: Path) -> bool:
    """Share the blocks of a file where the file system can (btrfs, XFS, bcachefs): each then lives its own life."""
    if sys.platform != "linux":
        return False
    import fcntl  # noqa: PLC0415 (not everywhere)

    try:
        with source.open("rb") as reading, target.open("wb") as writing:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
    except OSError as cause:
        target.unlink(missing_ok=True)
        if cause.errno in _NO_CLONES:
            return False
        with explained_disk(target):
            raise
    return True


def _link(source: Path, target: Path) -> bool:
    """Give the file a second name; not everywhere, and not across disks."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
