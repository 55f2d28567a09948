"""Adapters in the files that other programs read: a PEFT directory, a GGUF for llama.cpp, or bare safetensors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

from agent.errors import AdapterError, StateError
from agent.llm.adapter import Adapter, read_adapter, write_peft
from agent.llm.adapter_gguf import read_gguf_adapter, write_gguf_adapter
from agent.llm.gguf_file import GgufModel, open_gguf, sha256_file
from agent.paths import explained_disk, sync_directory, write_atomically

Form: TypeAlias = Literal["peft", "gguf", "safetensors"]
FORMS: tuple[Form, ...] = ("peft", "gguf", "safetensors")
_SUFFIXES = {"gguf": ".gguf", "safetensors": ".safetensors"}


def read_any_adapter(path: Path, base: Path | None) -> Adapter:
    """Read an adapter in any of its forms.

    Args:
        path: a PEFT directory, a safetensors file, or a GGUF adapter.
        base: the GGUF it belongs to, which only a GGUF adapter needs.

    Raises:
        AdapterError: it cannot be read, or it needs a base and none was given.
    """
    if not path.is_file() or not _is_gguf(path):
        return read_adapter(path)
    if base is None:
        raise AdapterError(
            f"{path} is a GGUF adapter, which can be read only beside its base",
            advice="Give the base with --base FILE_OR_NAME.",
        )
    return read_gguf_adapter(path, open_gguf(base))


def export_adapter(
    adapter: Adapter, out: Path, form: Form, *, base: Path, stem: str, base_name: str = "", overwrite: bool = False
) -> Path:
    """Write an adapter for another program, whole or not at all, and give where.

    Args:
        adapter: what to write.
        out: the directory for ``peft``; for the others a file, or a directory that gets ``STEM.gguf`` or the like.
        form: how.
        base: the GGUF that the adapter belongs to; read only for ``gguf``.
        stem: of a file in a directory.
        base_name: what PEFT's configuration names as its base.
        overwrite: replace what is there.

    Raises:
        StateError: something is there already, or the place cannot be written.
        AdapterError: the adapter does not fit the base.
        DiskFullError: there is no room.
    """
    target = out if form == "peft" or not out.is_dir() else out / f"{stem}{_SUFFIXES[form]}"
    occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if (occupied and not overwrite) or (form == "peft" and target.is_file()):
        raise StateError(f"{target} exists already", advice="Choose another --out, or replace it with --force.")
    with explained_disk(target):
        (target if form == "peft" else target.parent).mkdir(parents=True, exist_ok=True)
    if form == "safetensors":
        write_atomically(target, adapter.to_bytes(), mode=0o644)
    elif form == "gguf":
        write_gguf_adapter(adapter, _its_base(adapter, base), target)
    else:
        _write_peft(adapter, target, base_name)
    return target


def _write_peft(adapter: Adapter, directory: Path, base_name: str) -> None:
    """Write both files beside their places first; the configuration comes last, and without it PEFT loads nothing."""
    with explained_disk(directory), tempfile.TemporaryDirectory(prefix=".peft.", dir=directory) as room:
        write_peft(adapter, Path(room), base_name=base_name)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (Path(room) / name).replace(directory / name)
        sync_directory(directory)


def _its_base(adapter: Adapter, base: Path) -> GgufModel:
    """Open the base, which must be the adapter's own: a GGUF adapter follows the base's order of rows."""
    if sha256_file(base) != adapter.base_sha256:
        raise AdapterError(
            f"the adapter belongs to the base with SHA-256 {adapter.base_sha256[:16]}…, and {base} is another file",
            advice="Give its own base with --base FILE_OR_NAME.",
        )
    return open_gguf(base)


def _is_gguf(path: Path) -> bool:
    with explained_disk(path), path.open("rb") as file:
        return file.read(4) == b"GGUF"
