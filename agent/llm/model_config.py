"""The dimensions of a model, read from the metadata of its GGUF, with every number checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.errors import UnreadableModelError, UnsupportedModelError
from agent.llm.architectures import Activation, Architecture, Width, supported
from agent.llm.gguf_header import ArrayValue, Value
from agent.llm.rotary import MAX_STRETCH, RotaryScaling

MAX_LAYERS = 512  # as many as llama.cpp runs
MAX_COUNT = (1 << 31) - 1
_MAX_REAL = 3.4e38
_GEMMA3_27B_LAYERS = 62
_SCALING_KINDS = frozenset({"none", "linear", "yarn", "longrope"})

DecodeArray = Callable[[ArrayValue], list[int | float | bool | str]]
"""Decodes an array of the metadata."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The dimensions of a decoder-only transformer.

    Attributes:
        n_layers: blocks.
        hidden: width of the residual stream.
        ffn: width inside the feed-forward layers.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: width of one head.
        vocab: tokens in the vocabulary.
        context_length: tokens that the model was trained to look at.
        norm_eps: epsilon of the RMS norms.
        activation: of the gate in the feed-forward layers.
        attention_scale: what products of queries and keys are multiplied by.
        embedding_scale: what embeddings are multiplied by.
        rope: how positions turn queries and keys.
        sliding_window: tokens that a position of a sliding layer sees at most, itself included; None without any.
        sliding_layers: for each layer whether it slides.
        sliding_rope_base: base of the rotary frequencies in sliding layers.
        tied: the output layer is the embedding.
    """

    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    norm_eps: float
    activation: Activation
    attention_scale: float
    embedding_scale: float
    rope: RotaryScaling
    sliding_window: int | None
    sliding_layers: tuple[bool, ...]
    sliding_rope_base: float
    tied: bool

    @property
    def rotary_dimensions(self) -> int:
        """How many values of each head are turned by their position, from its first."""
        return self.rope.dimensions

    @property
    def rope_base(self) -> float:
        """Base of the rotary frequencies, outside of sliding layers."""
        return self.rope.base

    def width(self, kind: Width) -> int:
        """Give the width that a table row names."""
        attention, key_value = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        widths: dict[Width, int] = {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "gate_up": 2 * self.ffn,
            "attention": attention,
            "key_value": key_value,
            "qkv": attention + 2 * key_value,
        }
        return widths[kind]

    def attention_window(self, layer: int) -> int | None:
        """Say how many tokens a position of this layer sees at most, itself included; None for all before it."""
        return self.sliding_window if self.sliding_layers[layer] else None

    def rope_of(self, layer: int) -> RotaryScaling:
        """Give the rotary scaling of one layer: sliding layers have a base of their own, and stretch no positions."""
        return self.rope.unscaled(self.sliding_rope_base) if self.sliding_layers[layer] else self.rope


class _Numbers:
    """The numbers of one architecture in a file's metadata."""

    def __init__(self, metadata: Mapping[str, Value], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def get(self, key: str) -> Value | None:
        return self.metadata.get(f"{self.prefix}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """Give a whole number from 0 to 2^31 - 1."""
        value = self._one(key, default)
        if not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            raise UnreadableModelError(
                f"claims {value} for {self.prefix}.{key}", advice="The file is damaged; fetch it again."
            )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Give a finite number that fits float32, as llama.cpp reads it."""
        value = float(self._one(key, default))
        if not abs(value) <= _MAX_REAL:
            raise UnreadableModelError(
                f"claims {value} for {self.prefix}.{key}", advice="The file is damaged; fetch it again."
            )
        return value

    def _one(self, key: str, default: float | None) -> int | float:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnsupportedModelError(
                f"does not give {self.prefix}.{key} as one number",
                advice=f"Models whose layers differ in their dimensions are not supported. {supported()}",
            )
        return value


def read_config(
    metadata: Mapping[str, Value], architecture: Architecture, *, vocab: int, tied: bool, decode: DecodeArray
) -> ModelConfig:
    """Read the dimensions, refusing what would silently compute something else than llama.cpp does.

    Args:
        metadata: of the file.
        architecture: its row in the table.
        vocab: rows of the embedding.
        tied: the file has no output layer of its own.
        decode: decodes an array of the metadata.

    Raises:
        UnreadableModelError: a number cannot be right.
        UnsupportedModelError: the model has something that is not supported.
    """
    numbers = _Numbers(metadata, architecture.name)
    hidden, n_heads = numbers.count("embedding_length"), numbers.count("attention.head_count")
    if n_heads < 1 or hidden < 1:
        raise UnreadableModelError(f"claims {n_heads} heads of {hidden} dimensions", advice="Fetch the file again.")
    n_layers = numbers.count("block_count")
    if n_layers > MAX_LAYERS:
        raise UnreadableModelError(f"claims {n_layers} layers", advice="The file is damaged; fetch it again.")
    head_dim = numbers.count("attention.key_length", hidden // n_heads)
    window = numbers.count("attention.sliding_window", 0) if architecture.every_nth_layer_sees_all else 0
    config = ModelConfig(
        n_layers=n_layers,
        hidden=hidden,
        ffn=numbers.count("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=numbers.count("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        vocab=vocab,
        context_length=numbers.count("context_length"),
        norm_eps=numbers.real("attention.layer_norm_rms_epsilon"),
        activation=architecture.activation,
        attention_scale=_attention_scale(architecture, n_layers, hidden // n_heads, head_dim),
        embedding_scale=math.sqrt(hidden) if architecture.scales_embedding else 1.0,
        rope=_rope(numbers, architecture, head_dim),
        sliding_window=window or None,
        sliding_layers=_sliding_layers(numbers, architecture, n_layers, decode) if window else (False,) * n_layers,
        sliding_rope_base=numbers.real("rope.freq_base_swa", 10_000.0) if window else 10_000.0,
        tied=tied,
    )
    _refuse(numbers, architecture, config)
    return config


def _refuse(numbers: _Numbers, architecture: Architecture, config: ModelConfig) -> None:
    """Name the first thing that is not supported."""
    head_dim, rotated = config.head_dim, config.rotary_dimensions
    refusals = {
        "a mixture of experts": numbers.count("expert_count", 0) != 0,
        "layers that predict several tokens": numbers.count("nextn_predict_layers", 0) != 0,
        "attention that looks ahead": numbers.get("attention.causal") is False,
        "a cap on its logits": architecture.name == "gemma3" and numbers.real("final_logit_softcapping", 0.0) != 0,
        "value heads of another width than key heads": numbers.count("attention.value_length", head_dim) != head_dim,
        "sliding layers with heads of another width": config.sliding_window is not None
        and any(
            numbers.count(key, usual) != usual
            for key, usual in (
                ("attention.key_length_swa", head_dim),
                ("attention.value_length_swa", head_dim),
                ("rope.dimension_count_swa", rotated),
            )
        ),
        "a sliding window in none of its layers": config.sliding_window is not None and not any(config.sliding_layers),
        "a number of heads that its key-value heads do not divide": config.n_kv_heads < 1
        or config.n_heads % config.n_kv_heads != 0,
        "an odd head width": head_dim % 2 != 0 or head_dim < 2,
        "heads that do not add up to its hidden width": not architecture.free_heads
        and config.n_heads * head_dim != config.hidden,
        "rotary positions on a part of each head": rotated != head_dim and not architecture.partial_rotary,
        "rotary positions that do not fit its heads": rotated % 2 != 0 or not 2 <= rotated <= head_dim,
        "a base of its rotary positions that is not above 1": min(config.rope_base, config.sliding_rope_base) <= 1,
        "no layers": config.n_layers < 1,
        "no context": config.context_length < 1,
        "norms without an epsilon": not 0 < config.norm_eps < 1,
    }
    for what, present in refusals.items():
        if present:
            raise UnsupportedModelError(f"has {what}", advice=supported())


def _rope(numbers: _Numbers, architecture: Architecture, head_dim: int) -> RotaryScaling:
    """Read the rotary scaling; llama.cpp takes a missing kind for linear, and a factor of 0 for none."""
    kind = numbers.get("rope.scaling.type") or "linear"
    if kind not in _SCALING_KINDS or kind not in architecture.scalings:
        raise UnsupportedModelError(
            f"scales its rotary positions by {kind!r}",
            advice=f"Use a base whose scaling is one of: {', '.join(sorted(architecture.scalings))}.",
        )
    old_factor = numbers.real("rope.scale_linear", 0.0)
    factor = (numbers.real("rope.scaling.factor", old_factor) or 1.0) if kind != "none" else 1.0
    original = numbers.count("rope.scaling.original_context_length", numbers.count("context_length"))
    magnitude = numbers.real("rope.scaling.attn_factor", 1.0)
    usual = all(1 / MAX_STRETCH <= number <= MAX_STRETCH for number in (factor, magnitude))
    if not usual or (kind == "yarn" and (factor < 1 or original < 1)):
        raise UnsupportedModelError(
            f"stretches {original} rotary positions by {factor} and their values by {magnitude}",
            advice="The file is damaged, or was made for another program; use another base.",
        )
    return RotaryScaling(
        dimensions=numbers.count("rope.dimension_count", head_dim),
        base=numbers.real("rope.freq_base", 10_000.0),
        kind=kind,
        factor=factor,
        original_context=original,
        magnitude=magnitude,
    )


def _attention_scale(architecture: Architecture, n_layers: int, even_share: int, head_dim: int) -> float:
    """Give the usual scale; the 27B model of Gemma 3 has that of heads which share the hidden width evenly."""
    special = architecture.name == "gemma3" and n_layers == _GEMMA3_27B_LAYERS
    return 1.0 / math.sqrt(max(1, even_share if special else head_dim))


def _sliding_layers(
    numbers: _Numbers, architecture: Architecture, n_layers: int, decode: DecodeArray
) -> tuple[bool, ...]:
    """Say for each layer whether it slides: by the file's list or period, else by the architecture's period."""
    pattern = numbers.get("attention.sliding_window_pattern")
    if isinstance(pattern, ArrayValue):
        if pattern.count != n_layers:
            raise UnreadableModelError(
                f"has a pattern of {pattern.count} sliding layers for {n_layers} layers",
                advice="The file is damaged; fetch it again.",
            )
        flags = decode(pattern)
        if not all(isinstance(flag, int) for flag in flags):
            raise UnreadableModelError(
                "has a pattern of sliding layers that is not of yes and no", advice="Fetch the file again."
            )
        return tuple(bool(flag) for flag in flags)
    period = numbers.count("attention.sliding_window_pattern", architecture.every_nth_layer_sees_all)
    return tuple(period == 0 or layer % period < period - 1 for layer in range(n_layers))
