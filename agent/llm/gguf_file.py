"""A GGUF base on disk: checked, described, and mapped into memory without unpacking anything."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent.errors import AdapterError, BaseMismatchError, ModelError, UnreadableModelError, UnsupportedModelError
from agent.llm.adapter import ModulePath
from agent.llm.architectures import ARCHITECTURES, Architecture, LinearRow, Width
from agent.llm.ggml import BlockFormat, Packed, format_of
from agent.llm.gguf_header import ArrayValue, Header, TensorEntry, Value, decode_array, parse_header

EMBEDDING = "token_embd.weight"
OUTPUT_NORM = "output_norm.weight"
OUTPUT = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


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
        rope_base: base of the rotary frequencies.
        rope_linear_factor: positions are divided by this (1 for no scaling).
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
    rope_base: float
    rope_linear_factor: float
    tied: bool

    def width(self, kind: Width) -> int:
        """Give the width that a table row names."""
        widths: dict[Width, int] = {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "attention": self.n_heads * self.head_dim,
            "key_value": self.n_kv_heads * self.head_dim,
        }
        return widths[kind]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor, packed as it lies in the file.

    Attributes:
        name: its name in the GGUF.
        shape: rows first, as NumPy and torch count; a vector has one dimension.
        format: how its blocks are laid out.
        packed: its bytes, a read-only view into the mapped file.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    packed: Packed


class TargetModule(NamedTuple):
    """A linear layer that an adapter can change.

    Attributes:
        out_features: rows of its weight.
        in_features: columns of its weight.
        tensor: its name in the GGUF.
        rotary_heads: number of heads whose rows are stored as interleaved rotary pairs; 0 for none.
    """

    out_features: int
    in_features: int
    tensor: str
    rotary_heads: int


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A checked base model.

    Attributes:
        path: the file.
        architecture: its row in the table of architectures.
        config: its dimensions.
        tensors: packed tensors by name; they keep the file mapped for as long as they live.
        metadata: everything else that the file says.
    """

    path: Path
    architecture: Architecture
    config: ModelConfig
    tensors: Mapping[str, GgufTensor]
    metadata: Mapping[str, Value]

    @property
    def chat_template(self) -> str | None:
        """The Jinja template for conversations, where the file has one."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None


def open_gguf(path: Path) -> GgufModel:
    """Map a GGUF base and check that it can be trained.

    Raises:
        UnreadableModelError: missing, cut short, damaged, or no GGUF.
        UnsupportedModelError: a GGUF with something in it that is not supported here, which the message names.
    """
    mapped = _map(path)
    try:
        header = parse_header(memoryview(mapped))
        architecture = _architecture(header)
        config = _config(header, architecture)
        tensors = {entry.name: _tensor(entry, mapped, header.data_start) for entry in header.tensors}
        _check_tensors(tensors, architecture, config)
    except ModelError as cause:
        raise type(cause)(f"{path} {cause.message}", advice=cause.advice) from cause
    return GgufModel(path, architecture, config, tensors, header.metadata)


def read_metadata_array(model: GgufModel, key: str) -> list[int | float | bool | str]:
    """Decode an array of the metadata, such as ``tokenizer.ggml.tokens``; empty where there is none."""
    value = model.metadata.get(key)
    return decode_array(memoryview(_map(model.path)), value) if isinstance(value, ArrayValue) else []


def target_modules(model: GgufModel) -> dict[ModulePath, TargetModule]:
    """Give every linear layer that an adapter can change, by its transformers path, in the order of the model."""
    config = model.config
    return {
        ModulePath(f"model.layers.{layer}.{row.module}"): TargetModule(
            out_features=config.width(row.out_width),
            in_features=config.width(row.in_width),
            tensor=f"blk.{layer}.{row.tensor}.weight",
            rotary_heads=_rotary_heads(row, config),
        )
        for layer in range(config.n_layers)
        for row in model.architecture.linears
    }


def target_shapes(model: GgufModel, short_names: Collection[str]) -> dict[ModulePath, tuple[int, int]]:
    """Give ``(out_features, in_features)`` of the layers whose last name is among ``short_names``.

    Raises:
        AdapterError: a name is no linear layer of this base.
    """
    modules = target_modules(model)
    known = {path.rsplit(".", 1)[-1] for path in modules}
    unknown = sorted(set(short_names) - known)
    if unknown or not short_names:
        raise AdapterError(
            f"{model.path} has no linear layers named {', '.join(unknown) or '(none given)'}",
            advice=f"Choose target modules from: {', '.join(sorted(known))}.",
        )
    return {
        path: (target.out_features, target.in_features)
        for path, target in modules.items()
        if path.rsplit(".", 1)[-1] in set(short_names)
    }


def sha256_file(path: Path) -> str:
    """Give the hex SHA-256 of a file, read in pieces.

    Raises:
        UnreadableModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        raise _unreadable(path, cause) from cause


def check_base(path: Path, expected_sha256: str) -> None:
    """Check that the base here is the one that the community trains.

    Raises:
        BaseMismatchError: it is another file.
        UnreadableModelError: it cannot be read.
    """
    found = sha256_file(path)
    if found != expected_sha256:
        raise BaseMismatchError(
            f"{path} has SHA-256 {found[:16]}…, the community's base has {expected_sha256[:16]}…",
            advice="Fetch the community's base again, or give the path of the right file with --base.",
        )


def _map(path: Path) -> mmap.mmap:
    """Map the file read-only."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    except ValueError as cause:  # mmap's word for an empty file
        raise UnreadableModelError(f"{path} is empty", advice="The download did not finish; fetch it again.") from cause


def _unreadable(path: Path, cause: OSError) -> UnreadableModelError:
    return UnreadableModelError(
        f"cannot read the model {path}: {cause.strerror}", advice="Check the path and that you may read it."
    )


def _architecture(header: Header) -> Architecture:
    """Find the row of the table for this file."""
    name = header.metadata.get("general.architecture")
    supported = ", ".join(sorted(ARCHITECTURES))
    if header.metadata.get("general.type", "model") != "model":
        raise UnsupportedModelError(
            f"is of type {header.metadata['general.type']}, not a model", advice="Give the base model's own file."
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"has the architecture {name!r}", advice=f"Use a base of a supported architecture: {supported}."
        )
    return ARCHITECTURES[name]


def _config(header: Header, architecture: Architecture) -> ModelConfig:
    """Read the dimensions, refusing what would silently compute something else."""
    metadata, prefix = header.metadata, architecture.name

    def number(key: str, default: float | None = None) -> float:
        value = metadata.get(f"{prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnsupportedModelError(
                f"does not give {prefix}.{key} as one number",
                advice="Models whose layers differ in their dimensions are not supported yet; use another base.",
            )
        return value

    shapes = {entry.name: entry.dimensions for entry in header.tensors}
    hidden, n_heads = int(number("embedding_length")), int(number("attention.head_count"))
    if n_heads < 1 or hidden < 1:
        raise UnreadableModelError(f"claims {n_heads} heads of {hidden} dimensions", advice="Fetch the file again.")
    head_dim = int(number("attention.key_length", hidden // n_heads))
    config = ModelConfig(
        n_layers=int(number("block_count")),
        hidden=hidden,
        ffn=int(number("feed_forward_length")),
        n_heads=n_heads,
        n_kv_heads=int(number("attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        vocab=shapes.get(EMBEDDING, (0, 0))[-1],
        context_length=int(number("context_length")),
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_base=number("rope.freq_base", 10_000.0),
        rope_linear_factor=_rope_factor(metadata, prefix),
        tied=OUTPUT not in shapes,
    )
    refusals = {
        "a mixture of experts": number("expert_count", 0) != 0,
        "rotary positions on a part of each head": number("rope.dimension_count", head_dim) != head_dim,
        "value heads of another width than key heads": number("attention.value_length", head_dim) != head_dim,
        "a number of heads that its key-value heads do not divide": config.n_kv_heads < 1
        or n_heads % config.n_kv_heads != 0,
        "an odd head width": head_dim % 2 != 0 or head_dim < 2,
        "no layers": config.n_layers < 1,
        "norms without an epsilon": not 0 < config.norm_eps < 1,
    }
    for what, present in refusals.items():
        if present:
            raise UnsupportedModelError(f"has {what}", advice="Use a plain dense llama-architecture base.")
    return config


def _rope_factor(metadata: Mapping[str, Value], prefix: str) -> float:
    """Give the factor of linear rotary scaling; 1 for none."""
    kind = metadata.get(f"{prefix}.rope.scaling.type", "none")
    factor = metadata.get(f"{prefix}.rope.scaling.factor", metadata.get(f"{prefix}.rope.scale_linear", 1.0))
    if kind not in {"none", "linear"} or not isinstance(factor, int | float) or factor <= 0:
        raise UnsupportedModelError(
            f"scales its rotary positions by {kind!r}", advice="Use a base without rotary scaling, or with linear one."
        )
    return float(factor) if kind == "linear" else 1.0


def _tensor(entry: TensorEntry, mapped: mmap.mmap, data_start: int) -> GgufTensor:
    """Check one tensor against its format and the end of the file, and view its bytes."""
    block_format = format_of(entry.type_number, tensor=f"holds tensor {entry.name}, which")
    row = entry.dimensions[0]
    elements = int(np.prod(entry.dimensions, dtype=object))
    if row % block_format.block_elements:
        raise UnreadableModelError(
            f"stores rows of {row} in blocks of {block_format.block_elements} ({entry.name})",
            advice="The file is damaged; fetch it again.",
        )
    start, size = data_start + entry.offset, block_format.bytes_for(elements)
    if start + size > len(mapped):
        raise UnreadableModelError(
            f"ends at byte {len(mapped)}, in the middle of tensor {entry.name}, which ends at {start + size}",
            advice="The download was cut short; fetch it again.",
        )
    packed = np.frombuffer(mapped, dtype=np.uint8, count=size, offset=start)
    return GgufTensor(entry.name, tuple(reversed(entry.dimensions)), block_format, packed)


def _check_tensors(tensors: Mapping[str, GgufTensor], architecture: Architecture, config: ModelConfig) -> None:
    """Check that exactly the tensors are there that the computation uses, in their shapes."""
    expected: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab, config.hidden),
        OUTPUT_NORM: (config.hidden,),
    }
    if not config.tied:
        expected[OUTPUT] = (config.vocab, config.hidden)
    if ROPE_FACTORS in tensors:
        expected[ROPE_FACTORS] = (config.head_dim // 2,)
    if config.n_layers > len(tensors):
        raise UnreadableModelError(f"claims {config.n_layers} layers", advice="The file is damaged; fetch it again.")
    for layer in range(config.n_layers):
        for norm in architecture.norms:
            expected[f"blk.{layer}.{norm}.weight"] = (config.hidden,)
        for row in architecture.linears:
            shape = (config.width(row.out_width), config.width(row.in_width))
            expected[f"blk.{layer}.{row.tensor}.weight"] = shape
    for name, wanted in expected.items():
        if name not in tensors or tensors[name].shape != wanted:
            found = tensors[name].shape if name in tensors else "missing"
            raise UnreadableModelError(
                f"should have tensor {name} of shape {wanted}, which is {found}",
                advice="The file is damaged or incomplete; fetch it again.",
            )
    extra = [name for name in tensors if name not in expected and not _ignored(name, architecture)]
    if extra:
        raise UnsupportedModelError(
            f"holds {extra[0]}, which a plain {architecture.name} model does not have",
            advice="This variant (biases, experts or the like) is not supported yet; use another base.",
        )


def _ignored(name: str, architecture: Architecture) -> bool:
    return name.split(".", 2)[-1] in architecture.ignored


def _rotary_heads(row: LinearRow, config: ModelConfig) -> int:
    return config.width(row.out_width) // config.head_dim if row.rotary else 0
