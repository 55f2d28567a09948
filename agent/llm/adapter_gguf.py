"""Adapters in the form that llama.cpp loads: a small GGUF of type ``adapter``.

llama.cpp multiplies ``B @ A`` by ``scale * alpha / rank``, so at scale 1 it does what PEFT does. Tensors are named
after the base's with ``.lora_a`` and ``.lora_b`` added; ``B`` of a rotary layer has its rows in the base's order.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, FloatArray, LoraFactors, ModulePath
from agent.llm.gguf_file import GgufModel, TargetModule, target_modules
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

    Raises:
        AdapterError: it is no such file.
    """
    try:
        reader = gguf.GGUFReader(path)
        alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
        base_sha256 = str(reader.fields[_BASE_KEY].contents())
    except (OSError, ValueError, KeyError) as cause:
        raise AdapterError(
            f"{path} is no GGUF adapter written by Bramble", advice="Give the adapter.gguf of a release."
        ) from cause
    tensors: dict[str, FloatArray] = {t.name: np.array(t.data, dtype=np.float32) for t in reader.tensors}
    modules: dict[ModulePath, LoraFactors] = {}
    for name, target in target_modules(base).items():
        a, b = tensors.get(f"{target.tensor}.lora_a"), tensors.get(f"{target.tensor}.lora_b")
        if a is not None and b is not None:
            b = b[model_order(len(b), target.rotary_heads)] if target.rotary_heads else b
            modules[name] = LoraFactors(a=a, b=b)
    if not modules:
        raise AdapterError(f"{path} changes no layer of {base.path.name}", advice="Give an adapter for this base.")
    rank = next(iter(modules.values())).a.shape[0]
    return Adapter(rank=rank, alpha=alpha, modules=dict(sorted(modules.items())), base_sha256=base_sha256)
