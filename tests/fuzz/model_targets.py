"""Model files that somebody made: a base that a charter names or an owner downloads, and adapters as GGUF."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from agent.errors import AdapterError, ModelError
from agent.llm.adapter_gguf import read_gguf_adapter, write_gguf_adapter
from agent.llm.description import describe_model
from agent.llm.gguf_file import GgufModel, linear_names, open_gguf, target_modules
from tests.fuzz.target import CORPUS, FindingError, Target
from tests.fuzz.wire_targets import scratch

MAX_BYTES = 20_480
_BASE = CORPUS / "base-gguf" / "llama"
"""The base that adapters are read for: one of the seeds."""


def _file(data: bytes) -> Path:
    path = scratch() / "model.gguf"
    path.write_bytes(data)
    return path


def _base(data: bytes) -> None:
    """Open a base, and do what comes before its weights are used."""
    path = _file(data)
    describe_model(path)
    model = open_gguf(path)
    if sum(tensor.packed.nbytes for tensor in model.tensors.values()) > len(data) * len(model.tensors):
        raise FindingError("a tensor reaches beyond the file")
    modules = target_modules(model)
    linear_names(model)
    for layer in range(model.config.n_layers):
        rotary = model.rotary(layer, 512)
        if not np.isfinite(rotary.frequencies).all() or len(modules) % model.config.n_layers:
            raise FindingError(f"positions turn by {rotary.frequencies}")
    _ = model.chat_template


def _adapter(data: bytes) -> None:
    found = read_gguf_adapter(_file(data), _opened_base())
    if found.parameter_count * 4 > len(data) or not 0 < found.scaling < np.inf:
        raise FindingError(f"{found.parameter_count} numbers of scaling {found.scaling} came out of {len(data)} bytes")
    for name, factors in found.modules.items():
        target = target_modules(_opened_base())[name]
        if factors.shape != (target.out_features, target.in_features):
            raise FindingError(f"an adapter has {name} in the shape {factors.shape}")
        if not (np.isfinite(factors.a).all() and np.isfinite(factors.b).all()):
            raise FindingError(f"an adapter has a number in {name} that is not finite")


@cache
def _opened_base() -> GgufModel:
    return open_gguf(_BASE)


def _small_models() -> Iterator[tuple[str, bytes]]:
    """Give a model of each architecture, as small as they get, by name."""
    from tests.models import SHAPES, Shape, rewritten, write_model  # noqa: PLC0415 - loads llama.cpp

    small = {
        name: Shape(
            layers=2 if name == "gemma3" else 1,
            hidden=8,
            ffn=8,
            heads=2,
            kv_heads=1,
            head_dim=4,
            vocab=280,
            tied=usual.tied,
            biases=usual.biases,
            rope_factors=name == "llama",
            scaling="yarn" if name == "qwen2" else usual.scaling,
            rotated=2 if name == "phi3" else None,
            window=usual.window,
            period=usual.period,
            original_context=64,
        )
        for name, usual in SHAPES.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole.gguf", Path(folder) / "cut.gguf"
        for name, shape in small.items():
            write_model(whole, shape, name)
            few = np.zeros((4, 8), np.float32)
            extra = {"token_embd.weight": few, **({} if shape.tied else {"output.weight": few})}
            yield name, rewritten(whole, cut, extra=extra).read_bytes()
        yield "with-tokenizer", write_model(whole, small["llama"]).read_bytes()[:MAX_BYTES]


def _adapters() -> Iterator[bytes]:
    from tests.models import random_adapter  # noqa: PLC0415 - loads llama.cpp

    with tempfile.TemporaryDirectory() as folder:
        base, path = Path(folder) / "base.gguf", Path(folder) / "adapter.gguf"
        base.write_bytes(next(_small_models())[1])
        for names in (("q_proj",), ("q_proj", "k_proj", "down_proj")):
            model = open_gguf(base)
            write_gguf_adapter(random_adapter(model, rank=2, alpha=4.0, names=names), model, path)
            yield path.read_bytes()


def targets() -> Iterator[Target]:
    """Give the targets of this file."""
    yield Target(
        name="base-gguf",
        run=_base,
        seeds=lambda: (data for _name, data in _small_models()),
        refusals=(ModelError,),
        max_bytes=MAX_BYTES,
    )
    yield Target(name="adapter-gguf", run=_adapter, seeds=_adapters, refusals=(AdapterError,), max_bytes=MAX_BYTES)
