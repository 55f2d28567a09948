"""LoRA adapters as plain arrays: the form in which they are trained, sent, merged and kept.

An adapter changes a linear layer's weight ``W`` of shape ``(out, in)`` to ``W + scaling * B @ A`` with ``A`` of shape
``(rank, in)``, ``B`` of shape ``(out, rank)`` and ``scaling = alpha / rank`` (Hu et al. 2021, *LoRA*, section 4.1).
Its bytes are those of a PEFT checkpoint (safetensors), so what the hub hashes is what ``peft`` loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from agent.errors import AdapterError

FloatArray: TypeAlias = NDArray[np.float32]
ModulePath = NewType("ModulePath", str)
"""A linear layer's path in the transformers model, such as ``model.layers.0.self_attn.q_proj``."""

_PREFIX = "base_model.model."
MAX_RANK = 256
_HIGHEST_RANK = 2 * MAX_RANK  # what an update leaves over is kept as an adapter of twice its rank
_LARGEST_ALPHA = 3.4e38  # of a float32, which is what llama.cpp reads
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """The two factors of one module.

    Attributes:
        a: float32, shape ``(rank, in_features)``.
        b: float32, shape ``(out_features, rank)``.
    """

    a: FloatArray
    b: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the layer they change."""
        return (self.b.shape[0], self.a.shape[1])


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights for one base.

    Attributes:
        rank: columns of every ``b`` and rows of every ``a``.
        alpha: numerator of the scaling.
        modules: factors by module path, in sorted order of their names.
        base_sha256: hex SHA-256 of the base GGUF that they belong to.
    """

    rank: int
    alpha: float
    modules: Mapping[ModulePath, LoraFactors]
    base_sha256: str

    @property
    def scaling(self) -> float:
        """What ``B @ A`` is multiplied by."""
        return self.alpha / self.rank

    @property
    def shapes(self) -> dict[ModulePath, tuple[int, int]]:
        """``(out_features, in_features)`` by module."""
        return {name: factors.shape for name, factors in self.modules.items()}

    @property
    def target_modules(self) -> list[str]:
        """The short names PEFT lists as ``target_modules``, such as ``q_proj``."""
        return sorted({name.rsplit(".", 1)[-1] for name in self.modules})

    @property
    def parameter_count(self) -> int:
        """How many numbers it has in all."""
        return sum(factors.a.size + factors.b.size for factors in self.modules.values())

    def to_bytes(self) -> bytes:
        """Give the adapter as a PEFT safetensors file, the same bytes for the same numbers."""
        tensors: dict[str, FloatArray] = {}
        for name in sorted(self.modules):
            factors = self.modules[name]
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(factors.a, dtype=np.float32)
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(factors.b, dtype=np.float32)
        header = json.dumps({"alpha": self.alpha, "base_sha256": self.base_sha256, "rank": self.rank}, sort_keys=True)
        data: bytes = save_safetensors(tensors, metadata={"bramble": header})
        return data


def from_bytes(data: bytes) -> Adapter:
    """Read what :meth:`Adapter.to_bytes` wrote.

    Raises:
        AdapterError: the bytes are no adapter, or hold a number that is not finite.
    """
    try:
        header_length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_length])
        rank, alpha, base_sha256 = _about(json.loads(header["__metadata__"]["bramble"]))
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as cause:
        raise AdapterError(
            f"these {len(data)} bytes are no Bramble adapter: {cause}",
            advice="Fetch the adapter again, or use one written by this version of Bramble.",
        ) from cause
    return Adapter(rank=rank, alpha=alpha, modules=_pair(tensors, rank), base_sha256=base_sha256)


def _about(own: Mapping[str, object]) -> tuple[int, float, str]:
    """Give rank, alpha and base of an adapter from its own entry in the header.

    Raises:
        ValueError: one of them cannot be.
    """
    rank, alpha, base_sha256 = own["rank"], own["alpha"], own["base_sha256"]
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _HIGHEST_RANK:
        raise ValueError(f"its rank is not from 1 to {_HIGHEST_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= _LARGEST_ALPHA:
        raise ValueError("its alpha is no usual positive number")
    if not isinstance(base_sha256, str) or _SHA256.fullmatch(base_sha256) is None:
        raise ValueError("it does not name its base by a SHA-256")
    return rank, float(alpha), base_sha256


def _pair(tensors: Mapping[str, NDArray[np.generic]], rank: int) -> dict[ModulePath, LoraFactors]:
    """Put every ``lora_A`` with its ``lora_B``, checking ranks, types and finiteness."""
    modules: dict[ModulePath, LoraFactors] = {}
    names = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    for name in names:
        a = tensors.get(f"{_PREFIX}{name}.lora_A.weight")
        b = tensors.get(f"{_PREFIX}{name}.lora_B.weight")
        if a is None or b is None or not (_is_matrix(a, rows=rank) and _is_matrix(b.T, rows=rank)):
            raise AdapterError(
                f"module {name[:80]} of the adapter does not have two factors of rank {rank} in float32",
                advice="The file was damaged or made by another program; fetch it again.",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AdapterError(
                f"module {name} of the adapter holds numbers that are not finite",
                advice="The adapter is unusable; go back to an earlier release.",
            )
        modules[ModulePath(name)] = LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32))
    if not modules or len(tensors) != 2 * len(modules):
        raise AdapterError(
            "the adapter has no modules, or something that belongs to none",
            advice="The file was damaged or made by another program; fetch it again.",
        )
    return modules


def _is_matrix(factor: NDArray[np.generic], *, rows: int) -> bool:
    return factor.ndim == 2 and factor.shape[0] == rows and factor.size > 0 and factor.dtype == np.float32


def read_adapter(path: Path) -> Adapter:
    """Read an adapter from a safetensors file or from a PEFT directory.

    Raises:
        AdapterError: there is no file, or it is no adapter.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as cause:
        raise AdapterError(
            f"cannot read the adapter {file}: {cause.strerror}", advice="Check the path and its permissions."
        ) from cause
    return from_bytes(data)


def write_peft(adapter: Adapter, directory: Path, *, base_name: str = "") -> None:
    """Write a directory that ``PeftModel.from_pretrained`` loads: weights and ``adapter_config.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": adapter.target_modules,
    }
    layers = sorted({int(name.split(".")[2]) for name in adapter.modules if name.startswith("model.layers.")})
    if layers and layers[0] > 0:  # PEFT would put untrained factors on the layers below
        config["layers_to_transform"] = layers
    (directory / "adapter_model.safetensors").write_bytes(adapter.to_bytes())
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
