"""Where a device or a hub keeps its state, and how a file is written so that a crash cannot harm it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from agent.errors import AlreadyRunningError, DiskFullError, StateError

HOME_VARIABLE = "BRAMBLE_HOME"

_UNFINISHED = "."
"""Begins the names of files that are being written."""

SCARCE_BYTES = 64 * 1024
"""Less free space than this is none: SQLite alone wants 32 KiB at a time."""


@dataclass(frozen=True, slots=True)
class Home:
    """The state directory of one device or one hub.

    Attributes:
        root: the directory itself; mode 0700.
    """

    root: Path

    @property
    def keys(self) -> Path:
        """Private keys; mode 0700."""
        return self.root / "keys"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "state.db"

    @property
    def settings(self) -> Path:
        """The owner's settings, TOML."""
        return self.root / "settings.toml"

    @property
    def blobs(self) -> Path:
        """Large things, each named by its SHA-256."""
        return self.root / "blobs"

    @property
    def inbox(self) -> Path:
        """Transfers that are still arriving."""
        return self.root / "inbox"

    @property
    def work(self) -> Path:
        """What workers read and write: windows, checkpoints, trained adapters."""
        return self.root / "work"

    @property
    def models(self) -> Path:
        """The shelf of base models; made when the first one is put there."""
        return self.root / "models"

    @property
    def profiles(self) -> Path:
        """The owner's own profiles of machines, TOML; made by whoever puts one there."""
        return self.root / "profiles"

    @property
    def lock(self) -> Path:
        """Held by the process that runs on this directory."""
        return self.root / "lock"

    def create(self) -> None:
        """Make the directories, readable by their owner alone."""
        for directory in (self.root, self.keys, self.blobs, self.inbox, self.work):
            with explained_disk(directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what a process that was killed had begun to write. For whoever holds the directory, before it writes.

        Only where nobody else writes: other commands keep files below :attr:`work`.
        """
        for directory in (self.blobs, self.inbox):
            with explained_disk(directory):
                for path in directory.glob(f"{_UNFINISHED}*"):
                    if path.is_file():
                        path.unlink(missing_ok=True)


def default_home(kind: str) -> Path:
    """Give the directory that a ``device`` or a ``hub`` uses unless told otherwise."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_state_dir("bramble")) / kind


@contextlib.contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """Hold the state directory for this process.

    Raises:
        AlreadyRunningError: another process holds it.
    """
    lock = filelock.FileLock(home.lock, timeout=0)
    with explained_disk(home.lock):
        try:
            lock.acquire()
        except filelock.Timeout as cause:  # which is an OSError too
            raise AlreadyRunningError(
                f"another Bramble process is running on {home.root}",
                advice="Stop that one first, or give this one a directory of its own with --home.",
            ) from cause
    try:
        yield
    finally:
        lock.release()


def in_use(home: Home) -> bool:
    """Say whether a process runs on a state directory."""
    try:
        with exclusive(home):
            return False
    except AlreadyRunningError:
        return True


def read_secret(path: Path, max_bytes: int) -> tuple[bytes, str]:
    """Give what a file holds, one byte more than ``max_bytes`` at most, and its mode where others can read it.

    Returns:
        The content; and the mode, such as ``0644``, or nothing where only its owner can or the system has no modes.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(max_bytes + 1)
    return content, f"{mode:04o}" if os.name == "posix" and mode & 0o077 else ""


@contextlib.contextmanager
def explained_disk(path: Path) -> Iterator[None]:
    """Turn the operating system's complaint about ``path`` into an error with advice.

    Raises:
        DiskFullError: no room, or over the quota.
        StateError: anything else, such as missing permission.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(
                f"no room on the disk for {path}",
                advice="Free some space and start again: everything written before is kept, nothing is lost.",
            ) from cause
        raise StateError(
            f"cannot use {path}: {cause.strerror or cause}", advice="Check that the path exists and is yours to write."
        ) from cause


def out_of_room(path: Path) -> bool:
    """Say whether the disk below ``path`` is full: SQLite calls some of that an I/O error."""
    try:
        return shutil.disk_usage(path).free < SCARCE_BYTES
    except OSError:
        return False


def write_atomically(path: Path, data: bytes | bytearray, *, mode: int = 0o600) -> None:
    """Write a file so that after a crash at any moment it is either the old one or the new one, whole.

    Raises:
        DiskFullError: there is no room; the old file is untouched.
    """
    with explained_disk(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_UNFINISHED}{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut, where the operating system lets one ask for it."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class BlobStore:
    """Files named by the SHA-256 of what they hold.

    Args:
        directory: where they lie.
        lost: what to do about one that was damaged or is gone, where whoever reads it cannot get it anew.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lost: str = "Start again: it will be fetched or made anew. Check the disk if this comes back.",
    ) -> None:
        self._directory = directory
        self._lost = lost

    def path(self, sha256: str) -> Path:
        """Where the blob of this hash lies, or would lie."""
        return self._directory / sha256

    def put(self, data: bytes | bytearray) -> str:
        """Keep ``data`` and give its hex SHA-256; keeping it twice changes nothing."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256):
            write_atomically(self.path(sha256), data)
        return sha256

    def has(self, sha256: str) -> bool:
        """Say whether the blob is here."""
        return self.path(sha256).is_file()

    def get(self, sha256: str) -> bytes:
        """Give a blob, checked against its name.

        Raises:
            StateError: it is not here, or no longer what it was.
        """
        with explained_disk(self.path(sha256)):
            try:
                data = self.path(sha256).read_bytes()
            except FileNotFoundError as cause:
                raise StateError(f"the stored file {self.path(sha256)} is gone", advice=self._lost) from cause
        if hashlib.sha256(data).hexdigest() != sha256:
            self.path(sha256).unlink(missing_ok=True)
            raise StateError(
                f"the stored file {self.path(sha256)} was damaged and has been removed",
                advice=self._lost,
            )
        return data

    def keep_only(self, wanted: Container[str]) -> None:
        """Forget every blob that is not wanted."""
        for path in self._directory.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def discard(self, sha256: str) -> None:
        """Forget a blob, if it is here."""
        self.path(sha256).unlink(missing_ok=True)
