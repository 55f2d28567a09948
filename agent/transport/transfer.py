"""Large things in pieces, which arrive in any order, over any number of breaks, and are whole or nothing.

The receiving side keeps each chunk as a file, written under a temporary name, synced and renamed, so that a process
killed at any instruction finds on its return exactly the chunks it had, and asks for the others::

    <directory>/<transfer id>/plan      what was announced
    <directory>/<transfer id>/<index>   one chunk

Sizes are judged before anything is allocated or written. Where the receiver can tell a chunk from what was sent (its
``Check``), each is judged when it comes, and again when the whole is put together: one that was damaged, on its way or
on the disk, is asked for again alone.

Bounded: what a transfer may take, and all of them together, is limited by what they announce; the new one is refused,
and those that are here are kept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from agent.errors import DiskFullError, OversizedMessageError, StateError, TransferError

CHUNK_BYTES = 88 * 1024
"""A chunk, so that with its envelope and topic it fits one packet of 96 KiB."""

MAX_CHUNKS = 16_384
ID_BYTES = 16
HASH_BYTES = 32

_PLAN = "plan"
_PLAN_FORM = struct.Struct(">16sQI32s")
_DIRECTORY = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ADVICE = "The transfer is dropped; its sender starts it again."


Check: TypeAlias = Callable[[int, bytes], bool]
"""Is this, unchanged, the chunk of this index?"""


class DamagedChunksError(TransferError):
    """Some chunks are not what was sent, and only they have to come again."""

    def __init__(self, chunks: Sequence[int]) -> None:
        which = ", ".join(map(str, chunks[:8])) + (", …" if len(chunks) > 8 else "")
        super().__init__(
            f"{len(chunks)} chunks of a transfer were damaged: {which}.", advice="They are asked for again."
        )
        self.chunks = tuple(chunks)


def split(data: bytes, *, max_chunk: int = CHUNK_BYTES) -> list[bytes]:
    """Cut ``data`` into chunks of ``max_chunk`` bytes, the last one shorter; nothing gives one empty chunk."""
    return [data[start : start + max_chunk] for start in range(0, max(len(data), 1), max_chunk)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan:
    """What a sender announces, and a receiver holds it to."""

    id: bytes
    """16 bytes."""
    total_bytes: int
    chunk_bytes: int
    """Of every chunk but the last."""
    sha256: bytes
    """Of the whole."""

    def __post_init__(self) -> None:
        if len(self.id) != ID_BYTES or len(self.sha256) != HASH_BYTES:
            raise TransferError("A transfer's id or hash has the wrong size.", advice=_ADVICE)
        if self.total_bytes < 0 or not 1 <= self.chunk_bytes <= CHUNK_BYTES or self.chunk_count > MAX_CHUNKS:
            raise TransferError(
                f"A transfer of {self.total_bytes} bytes in chunks of {self.chunk_bytes} is out of range.",
                advice=_ADVICE,
            )

    @classmethod
    def of(cls, data: bytes, *, id: bytes, chunk_bytes: int = CHUNK_BYTES) -> Self:  # noqa: A002 - its name everywhere
        """Give the plan of sending ``data``."""
        return cls(id=id, total_bytes=len(data), chunk_bytes=chunk_bytes, sha256=hashlib.sha256(data).digest())

    @property
    def hex_id(self) -> str:
        """The id for people, file names and the outbox."""
        return self.id.hex()

    @property
    def chunk_count(self) -> int:
        """How many chunks; one at least."""
        return max(1, -(-self.total_bytes // self.chunk_bytes))

    def chunk_size(self, index: int) -> int:
        """How long chunk ``index`` must be."""
        return min(self.chunk_bytes, self.total_bytes - index * self.chunk_bytes)

    def encode(self) -> bytes:
        """Give the 60 bytes that are kept beside the chunks: id, total (u64), chunk (u32), SHA-256; big-endian."""
        return _PLAN_FORM.pack(self.id, self.total_bytes, self.chunk_bytes, self.sha256)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` gave.

        Raises:
            TransferError: it is no plan.
        """
        if len(data) != _PLAN_FORM.size:
            raise TransferError("A transfer's plan cannot be read.", advice=_ADVICE)
        identifier, total, chunk, sha256 = _PLAN_FORM.unpack(data)
        return cls(id=identifier, total_bytes=total, chunk_bytes=chunk, sha256=sha256)


class IncomingTransfer:
    """A transfer on its way in. Made by ``TransferStore``."""

    def __init__(
        self,
        *,
        directory: Path,
        plan: TransferPlan,
        have: set[int],
        check: Check | None = None,
        durable: bool = True,
    ) -> None:
        self._directory = directory
        self._have = have
        self._check = check
        self._durable = durable
        self.plan = plan

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return len(self._have) == self.plan.chunk_count

    def add(self, index: int, data: bytes) -> bool:
        """Keep one chunk; where the store is durable, it outlasts a power cut. False if it was here already.

        Raises:
            TransferError: no such chunk, or not as long as announced. Nothing was written.
            DamagedChunksError: it is not what was sent. Nothing was written.
            DiskFullError: no room. What is here stays.
        """
        if not 0 <= index < self.plan.chunk_count:
            raise TransferError(
                f"Chunk {index} does not belong to a transfer of {self.plan.chunk_count} chunks.", advice=_ADVICE
            )
        if len(data) != self.plan.chunk_size(index):
            raise TransferError(
                f"Chunk {index} has {len(data)} bytes where {self.plan.chunk_size(index)} were announced.",
                advice=_ADVICE,
            )
        if index in self._have:
            return False
        if self._check is not None and not self._check(index, data):
            raise DamagedChunksError([index])
        _write(self._directory / str(index), data, durable=self._durable)
        self._have.add(index)
        return True

    def missing(self) -> list[int]:
        """Give the chunks that have not come yet, in order."""
        return [index for index in range(self.plan.chunk_count) if index not in self._have]

    def missing_ranges(self) -> list[tuple[int, int]]:
        """Give the missing chunks as (first, how many), in order, for a receipt."""
        return ranges(self.missing())

    def assemble(self) -> bytes:
        """Give the whole.

        Raises:
            TransferError: chunks are missing; or the whole is not what was announced, and then all of it is thrown
                away, unless it can be said which chunks were wrong.
            DamagedChunksError: these were, and are thrown away; the others stay.
        """
        if not self.complete:
            raise TransferError(
                f"A transfer lacks {self.plan.chunk_count - len(self._have)} of {self.plan.chunk_count} chunks.",
                advice="Wait for the rest of it.",
            )
        data = b"".join(map(self._read, range(self.plan.chunk_count)))
        if hashlib.sha256(data).digest() != self.plan.sha256:
            self._discard_damaged()
            self.discard()
            raise TransferError("A transfer is complete, and not what was announced.", advice=_ADVICE)
        return data

    def _discard_damaged(self) -> None:
        """Throw away the chunks that changed on the disk, if it can be said which.

        Raises:
            DamagedChunksError: these.
        """
        if self._check is None:
            return
        damaged = [index for index in range(self.plan.chunk_count) if not self._check(index, self._read(index))]
        for index in damaged:
            (self._directory / str(index)).unlink(missing_ok=True)
            self._have.discard(index)
        if damaged:
            raise DamagedChunksError(damaged)

    def _read(self, index: int) -> bytes:
        """Give one chunk as it is on the disk; nothing where it vanished."""
        try:
            return (self._directory / str(index)).read_bytes()
        except FileNotFoundError:
            return b""

    def discard(self) -> None:
        """Throw away what has come."""
        self._have.clear()
        shutil.rmtree(self._directory, ignore_errors=True)


class TransferStore:
    """The transfers on their way in, in one directory.

    Args:
        directory: made when first needed.
        max_bytes: how large one transfer may be.
        max_total_bytes: how large all of them may be together, by what they announced.
        durable: whether a chunk that was taken outlasts a power cut. It need not where its sender keeps it until the
            whole has arrived and was checked; a process that is killed loses nothing either way.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_total_bytes: int, durable: bool = True) -> None:
        self._directory = directory
        self._durable = durable
        self.max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes

    def begin(self, plan: TransferPlan, *, check: Check | None = None) -> IncomingTransfer:
        """Begin a transfer, or go on with it if it is here already.

        Args:
            plan: what was announced.
            check: tells a chunk from what was sent; without one, only sizes and the whole are held to the plan.

        Raises:
            OversizedMessageError: larger than allowed, alone or with the others. Nothing was written.
            TransferError: one with this id is here and is another.
            DiskFullError: no room.
        """
        directory = self._directory / plan.hex_id
        known = self._read(directory, check)
        if known is not None:
            if known.plan != plan:
                raise TransferError("Two transfers have the same id.", advice=_ADVICE)
            return known
        if plan.total_bytes > self.max_bytes:
            raise OversizedMessageError(
                f"A transfer of {plan.total_bytes} bytes was announced; at most {self.max_bytes} are taken.",
                advice=_ADVICE,
            )
        total = plan.total_bytes + sum(transfer.plan.total_bytes for transfer in self.stored())
        if total > self._max_total_bytes:
            raise OversizedMessageError(
                f"Transfers of {total} bytes would be on their way; at most {self._max_total_bytes} are taken.",
                advice="It can be announced again when others are through.",
            )
        with _disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        _write(directory / _PLAN, plan.encode(), durable=self._durable)
        return IncomingTransfer(directory=directory, plan=plan, have=set(), check=check, durable=self._durable)

    def stored(self) -> list[IncomingTransfer]:
        """Give every transfer that is here, as after a restart. Remains that cannot be used are removed."""
        found: list[IncomingTransfer] = []
        if not self._directory.is_dir():
            return found
        for directory in sorted(self._directory.iterdir()):
            if not _DIRECTORY.fullmatch(directory.name):
                continue
            transfer = self._read(directory)
            if transfer is None:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                found.append(transfer)
        return found

    def _read(self, directory: Path, check: Check | None = None) -> IncomingTransfer | None:
        try:
            with (directory / _PLAN).open("rb") as file:
                plan = TransferPlan.decode(file.read(_PLAN_FORM.size + 1))
        except (FileNotFoundError, NotADirectoryError, TransferError):
            return None
        have = {
            int(file.name)
            for file in directory.iterdir()
            if file.name.isdecimal()
            and int(file.name) < plan.chunk_count
            and file.stat().st_size == plan.chunk_size(int(file.name))
        }
        return IncomingTransfer(directory=directory, plan=plan, have=have, check=check, durable=self._durable)


def ranges(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Give indices, which are in order, as (first, how many), for a receipt."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and sum(found[-1]) == index:
            first, count = found[-1]
            found[-1] = (first, count + 1)
        else:
            found.append((index, 1))
    return found


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file that is there whole or not at all, and, where it is to be durable, stays after a power cut."""
    temporary = path.with_name(f".{path.name}")
    with _disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable and os.name == "posix":
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"The disk has no room for a transfer at {path.parent}.",
                advice="Free some space; the transfer goes on.",
            ) from error
        raise StateError(
            f"A transfer cannot be kept at {path.parent}: {error.strerror}.",
            advice="Check that the directory is yours and can be written to.",
        ) from error
