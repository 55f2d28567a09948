"""Adapters in the form that llama.cpp loads: a small GGUF of type ``adapter``.

llama.cpp multiplies ``B @ A`` by ``scale * alpha / rank``, so at scale 1 it does what PEFT does. Tensors are named
after the base's with ``.lora_a`` and ``.lora_b`` added; ``B`` of a rotary layer has its rows in the base's order.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from agent.errors import AdapterError, ModelError
from agent.llm.adapter import MAX_RANK, Adapter, FloatArray, LoraFactors, ModulePath
from agent.llm.ggml import F32
from agent.llm.gguf_file import GgufModel, TargetModule, target_modules
from agent.llm.gguf_header import Header, TensorEntry, parse_header
from agent.llm.rotary import model_order, stored_order
from agent.paths import explained_disk, sync_directory

_BASE_KEY = "bramble.base_sha256"


def check_fits(adapter: Adapter, base: GgufModel) -> dict[ModulePath, TargetModule]:
    """Check every module of an adapter against its base, and give the base's description of each.

    Raises:
        AdapterError: the adapter changes a layer that the base does not have, or has other shapes.
    """
    targets = target_modules(base)
    fitting: dict[ModulePath, TargetModule] = {}
    for name, factors in adapter.modules.items():
        target = targets.get(name)
        if target is None or factors.shape != (target.out_features, target.in_features):
            has = "is not in it" if target is None else f"is {(target.out_features, target.in_features)} there"
            raise AdapterError(
                f"the adapter does not fit {base.path.name}: it changes {name} of shape {factors.shape}, which {has}",
                advice="Use an adapter that was trained on this base.",
            )
        fitting[name] = target
    return fitting


def write_gguf_adapter(adapter: Adapter, base: GgufModel, path: Path) -> None:
    """Write an adapter for llama.cpp; the file appears whole or not at all.

    Raises:
        AdapterError: it does not fit the base.
        DiskFullError: there was no room for it.
    """
    targets = check_fits(adapter, base)
    with explained_disk(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            _write(adapter, base, targets, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def _write(adapter: Adapter, base: GgufModel, targets: Mapping[ModulePath, TargetModule], path: Path) -> None:
    """Write the file in place."""
    writer = gguf.GGUFWriter(path, arch=base.architecture.name)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
        writer.add_string(_BASE_KEY, adapter.base_sha256)
        for name in sorted(adapter.modules):
            factors, target = adapter.modules[name], targets[name]
            b = factors.b[stored_order(len(factors.b), target.rotary_heads)] if target.rotary_heads else factors.b
            writer.add_tensor(f"{target.tensor}.lora_a", np.ascontiguousarray(factors.a, dtype=np.float32))
            writer.add_tensor(f"{target.tensor}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_adapter(path: Path, base: GgufModel) -> Adapter:
    """Read back what :func:`write_gguf_adapter` wrote for this base.

    The file is read by this project's own reader, which bounds what a file can claim; that of gguf believes it.

    Raises:
        AdapterError: it is no such file.
    """
    try:
        data = path.read_bytes()
        header = parse_header(data)
    except (OSError, ModelError) as cause:
        raise _no_adapter(path) from cause
    alpha, base_sha256 = header.metadata.get(gguf.Keys.Adapter.LORA_ALPHA), header.metadata.get(_BASE_KEY)
    if not isinstance(alpha, float) or not 0 < alpha < math.inf or not isinstance(base_sha256, str):
        raise _no_adapter(path)
    tensors = {entry.name: entry for entry in header.tensors}
    modules: dict[ModulePath, LoraFactors] = {}
    ranks: set[int] = set()
    for name, target in target_modules(base).items():
        of_a, of_b = tensors.get(f"{target.tensor}.lora_a"), tensors.get(f"{target.tensor}.lora_b")
        if of_a is None or of_b is None:
            continue
        a, b = (_matrix(path, data, header, entry) for entry in (of_a, of_b))
        if (len(b), a.shape[1], len(a)) != (target.out_features, target.in_features, b.shape[1]):
            raise AdapterError(
                f"{path} has other shapes in {name} than {base.path.name}", advice="Give an adapter for this base."
            )
        b = b[model_order(len(b), target.rotary_heads)] if target.rotary_heads else b
        modules[name] = LoraFactors(a=a, b=b)
        ranks.add(len(a))
    if not modules:
        raise AdapterError(f"{path} changes no layer of {base.path.name}", advice="Give an adapter for this base.")
    if len(ranks) != 1 or max(ranks) > MAX_RANK:
        raise _no_adapter(path)
    return Adapter(rank=ranks.pop(), alpha=alpha, modules=dict(sorted(modules.items())), base_sha256=base_sha256)


def _matrix(path: Path, data: bytes, header: Header, entry: TensorEntry) -> FloatArray:
    """Give one factor, of finite numbers in F32, rows first."""
    if entry.type_number != F32 or len(entry.dimensions) != 2:
        raise _no_adapter(path)
    columns, rows = entry.dimensions
    start = header.data_start + entry.offset
    if start + 4 * rows * columns > len(data):
        raise _no_adapter(path)
    matrix = np.frombuffer(data, "<f4", rows * columns, start).astype(np.float32).reshape(rows, columns)
    if not np.isfinite(matrix).all():
        raise AdapterError(f"{path} holds numbers that are not finite", advice="Export the adapter again.")
    return matrix


def _no_adapter(path: Path) -> AdapterError:
    return AdapterError(
        f"{path} is no GGUF adapter written by Bramble, or is damaged", advice="Give the adapter.gguf of a release."
    )
