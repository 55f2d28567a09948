"""Making a smaller GGUF out of a larger one, by llama.cpp, in a process of its own.

A child process, because llama.cpp takes the memory of whole tensors, cannot be interrupted, and gives up on some files
by ending its process. The child is :mod:`agent.llm.quantise_worker`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.errors import DiskFullError, ModelError, StateError, UnsupportedModelError, WorkerCrashedError
from agent.llm.description import FILE_TYPES, FLOATS, read_header
from agent.llm.ggml import formats
from agent.llm.shelf import STALE_SECONDS, check_room
from agent.paths import explained_disk, out_of_room, sync_directory

GRACE_SECONDS = 5.0
"""How long a child that was told to leave may take."""

OnProgress = Callable[[int, int], None]
"""Called with the number of tensors done, and of all."""


class QuantiseJob(BaseModel):
    """What the child has to do.

    Attributes:
        source: the GGUF to read.
        target: the file to write, which is removed when the parent goes away.
        file_type: a number of ``enum llama_ftype``.
        threads: to compute on.
        requantise: take weights that are quantised already, losing quality twice.
    """

    model_config = ConfigDict(frozen=True)

    source: Path
    target: Path
    file_type: int
    threads: int
    requantise: bool


class QuantiseEvent(BaseModel):
    """A line of the child's output; after ``done`` or ``failed`` nothing comes.

    Attributes:
        tensor: of ``tensors``, the one under way.
        complaint: llama.cpp's words, where it failed.
    """

    model_config = ConfigDict(frozen=True)

    event: Literal["progress", "done", "failed"]
    tensor: int = 0
    tensors: int = 0
    complaint: str = ""


def quantise(
    source: Path,
    target: Path,
    kind: str,
    *,
    threads: int | None = None,
    requantise: bool = False,
    overwrite: bool = False,
    called: str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Write ``source`` once more with smaller weights; ``target`` appears whole or not at all.

    Args:
        source: a GGUF with F32, F16 or BF16 weights.
        target: where to.
        kind: a recipe of :data:`agent.llm.description.FILE_TYPES`, such as ``Q4_K_M``.
        threads: to compute on; None for all cores.
        requantise: take weights that are quantised already.
        overwrite: replace a file that is there.
        called: what messages call the source; its path if None.
        on_progress: hears of every tensor.

    Raises:
        ModelError: there is no such kind, or the source is none that can be quantised.
        StateError: the target exists, or its directory cannot be written.
        DiskFullError: there is no room.
        WorkerCrashedError: the child was killed.
    """
    file_type = file_type_of(kind)
    called = called or str(source)
    _check_source(source, kind, called, requantise=requantise)
    if target.exists() and not overwrite:
        raise StateError(f"{target} exists already", advice="Choose another file with --out, or give --force.")
    if not target.parent.is_dir():
        raise StateError(f"there is no directory {target.parent}", advice="Create it, or choose another --out.")
    check_room(target.parent, smallest_size(source, kind), what=f"{called} in {kind} at least")
    _sweep(target.parent)
    temporary = target.parent / f".{secrets.token_hex(8)}.quantising"
    job = QuantiseJob(
        source=source.resolve(),
        target=temporary,
        file_type=file_type,
        threads=threads or _usable_cores(),
        requantise=requantise,
    )
    try:
        _run(job, on_progress, called=called)
        with explained_disk(target):
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_directory(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def file_type_of(kind: str) -> int:
    """Give llama.cpp's number of a recipe.

    Raises:
        ModelError: there is none of that name.
    """
    if kind not in FILE_TYPES:
        raise ModelError(
            f"{kind!r} is no type that a model can be quantised to", advice=f"Choose from: {', '.join(FILE_TYPES)}."
        )
    return FILE_TYPES[kind]


def name_in(kind: str, name: str) -> str:
    """Give a model's name with another type in it: ``berry-Q8_0`` in ``Q4_K_M`` is ``berry-Q4_K_M``."""
    known = "|".join(sorted(FILE_TYPES, key=len, reverse=True))
    return f"{re.sub(rf'[-_. ](?:{known})$', '', name, flags=re.IGNORECASE)}-{kind}"


def smallest_size(source: Path, kind: str) -> int:
    """Give the bytes that the weights take at least: recipes keep some tensors in larger formats."""
    main = kind.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    block = next(block for block in formats().values() if block.name == main)
    elements = 0
    for entry in read_header(source).tensors:
        count = 1
        for dimension in entry.dimensions:
            count *= dimension
        elements += count if len(entry.dimensions) > 1 else 0
    return elements * block.block_bytes // block.block_elements


def _check_source(source: Path, kind: str, called: str, *, requantise: bool) -> None:
    """Refuse what llama.cpp would refuse, in words."""
    header = read_header(source)
    if header.metadata.get("general.type", "model") != "model" or not header.tensors:
        what = header.metadata.get("general.type", "file without weights")
        raise UnsupportedModelError(
            f"{called} is of type {what}, not a model", advice="Give the GGUF of a whole language model."
        )
    if "split.count" in header.metadata and header.metadata["split.count"] != 1:
        raise UnsupportedModelError(
            f"{called} is one part of a model that was split into {header.metadata['split.count']} files",
            advice="Join the parts first with `llama-gguf-split --merge`.",
        )
    numbers = {entry.type_number for entry in header.tensors}
    quantised = [block.name for block in formats().values() if block.type in numbers and block.name not in FLOATS]
    if quantised and not requantise:
        raise UnsupportedModelError(
            f"{called} is quantised already ({', '.join(quantised)}); making it {kind} would lose quality twice",
            advice="Start from the model in F16, BF16 or F32; or give --requantize if this file is all you have.",
        )


def _run(job: QuantiseJob, on_progress: OnProgress | None, *, called: str) -> None:
    """Let the child do it, and turn its end into nothing or an error."""
    last: QuantiseEvent | None = None
    with tempfile.TemporaryFile() as words:
        with _child(words.fileno()) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(job.model_dump_json().encode() + b"\n")
                child.stdin.flush()
            for line in child.stdout:
                with contextlib.suppress(ValidationError):
                    last = QuantiseEvent.model_validate_json(line)
                    if last.event == "progress" and on_progress is not None:
                        on_progress(last.tensor, last.tensors)
            status = child.wait()
        words.seek(max(0, words.tell() - 2000))
        tail = words.read().decode("utf-8", "replace").strip()
    if last is not None and last.event == "done" and status == 0:
        return
    if out_of_room(job.target.parent):
        raise DiskFullError(
            f"no room on the disk of {job.target.parent} for {called} in another type",
            advice="Free some space and start again. Nothing was left behind.",
        )
    if last is not None and last.event == "failed":
        raise UnsupportedModelError(
            f"llama.cpp cannot quantise {called}: {last.complaint}",
            advice="Check that the file is a whole GGUF language model; fetch it again if in doubt.",
        )
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    raise WorkerCrashedError(
        f"the quantising process {ended} before {called} was done" + (f"; its last words:\n{tail}" if tail else ""),
        advice="Nothing was left behind; start it again. If it was killed, the machine may lack memory.",
    )


@contextlib.contextmanager
def _child(words: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the child; it is gone when the block ends, however it ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", "agent.llm.quantise_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=words,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(OSError):
            assert child.stdin is not None
            child.stdin.close()  # tells it to leave, on every system
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _sweep(directory: Path) -> None:
    """Remove what a power cut left here long ago."""
    with contextlib.suppress(OSError):
        for path in directory.glob(".*.quantising"):
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
