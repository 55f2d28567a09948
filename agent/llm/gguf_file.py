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
from agent.llm.architectures import (
    ARCHITECTURES,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Architecture,
    LinearRow,
    Role,
    supported,
)
from agent.llm.ggml import F32, BlockFormat, Packed, format_of
from agent.llm.gguf_header import Header, TensorEntry, Value, decode_array, parse_header
from agent.llm.model_config import ModelConfig, read_config
from agent.llm.rotary import MAX_STRETCH, FloatArray, Rotary

EMBEDDING = "token_embd.weight"
OUTPUT_NORM = "output_norm.weight"
OUTPUT = "output.weight"


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
        role: what the layer is for.
        layer: its block, from 0.
        bias: name of the tensor that is added to its output, in the order of the stored rows; None for none.
    """

    out_features: int
    in_features: int
    tensor: str
    rotary_heads: int
    role: Role
    layer: int
    bias: str | None


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

    def rotary(self, layer: int, context: int) -> Rotary:
        """Give how positions turn the heads of one layer.

        Args:
            layer: from 0.
            context: tokens of the longest sequence; llama.cpp, opened for as many, decides by it between the factors of
                a short and of a long context, where the file has both.
        """
        scaling = self.config.rope_of(layer)
        by_length = LONG_FACTORS if scaling.is_long(context) else SHORT_FACTORS
        tensor = self.tensors.get(ROPE_FACTORS, self.tensors.get(by_length))
        return scaling.rotary(None if tensor is None else _vector(tensor))


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
        shapes = {entry.name: entry.dimensions for entry in header.tensors}
        config = read_config(
            header.metadata,
            architecture,
            vocab=shapes.get(EMBEDDING, (0, 0))[-1],
            tied=OUTPUT not in shapes,
            decode=lambda array: decode_array(memoryview(mapped), array),
        )
        tensors = {entry.name: _tensor(entry, mapped, header.data_start) for entry in header.tensors}
        _check_tensors(tensors, architecture, config)
    except ModelError as cause:
        raise type(cause)(f"{path} {cause.message}", advice=cause.advice) from cause
    return GgufModel(path, architecture, config, tensors, header.metadata)


def target_modules(model: GgufModel) -> dict[ModulePath, TargetModule]:
    """Give every linear layer that an adapter can change, by its transformers path, in the order of the model."""
    config = model.config
    return {
        ModulePath(f"model.layers.{layer}.{row.module}"): TargetModule(
            out_features=config.width(row.out_width),
            in_features=config.width(row.in_width),
            tensor=f"blk.{layer}.{row.tensor}.weight",
            rotary_heads=_rotary_heads(row, config),
            role=row.role,
            layer=layer,
            bias=bias if (bias := f"blk.{layer}.{row.tensor}.bias") in model.tensors else None,
        )
        for layer in range(config.n_layers)
        for row in model.architecture.linears
    }


def linear_names(model: GgufModel) -> tuple[str, ...]:
    """Give the last names of all layers that an adapter can change, such as ``q_proj``."""
    return tuple(dict.fromkeys(path.rsplit(".", 1)[-1] for path in target_modules(model)))


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
    if header.metadata.get("general.type", "model") != "model":
        raise UnsupportedModelError(
            f"is of type {header.metadata['general.type']}, not a model", advice="Give the base model's own file."
        )
    if header.metadata.get("split.count", 0) not in {0, 1}:
        raise UnsupportedModelError(
            f"is one of {header.metadata['split.count']} parts of a model",
            advice="Put the parts together with llama-gguf-split --merge first.",
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModelError(f"has the architecture {name!r}", advice=supported())
    return ARCHITECTURES[name]


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
    if config.n_layers > len(tensors):
        raise UnreadableModelError(f"claims {config.n_layers} layers", advice="The file is damaged; fetch it again.")
    expected = _required(architecture, config) | {
        name: shape for name, shape in _optional(architecture, config).items() if name in tensors
    }
    for name, wanted in expected.items():
        if name not in tensors or tensors[name].shape != wanted:
            found = tensors[name].shape if name in tensors else "missing"
            raise UnreadableModelError(
                f"should have tensor {name} of shape {wanted}, which is {found}",
                advice="The file is damaged or incomplete; fetch it again.",
            )
        if len(wanted) == 1 and tensors[name].format.type != F32:
            raise UnsupportedModelError(
                f"holds {name} as {tensors[name].format.name}",
                advice="llama.cpp reads it only as F32; use another base.",
            )
    for name in architecture.factor_tensors & tensors.keys():
        _check_factors(tensors[name])
    extra = [name for name in tensors if name not in expected and not _ignored(name, architecture)]
    if extra:
        raise UnsupportedModelError(
            f"holds {extra[0]}, which a plain {architecture.name} model does not have",
            advice=f"This variant (experts, several heads or the like) is not supported. {supported()}",
        )


def _required(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the tensors that must be there."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab, config.hidden), OUTPUT_NORM: (config.hidden,)}
    if not config.tied:
        shapes[OUTPUT] = (config.vocab, config.hidden)
    for layer in range(config.n_layers):
        shapes |= {f"blk.{layer}.{norm}.weight": (config.hidden,) for norm in architecture.norms}
        shapes |= {f"blk.{layer}.{norm}.weight": (config.head_dim,) for norm in architecture.head_norms}
        for row in architecture.linears:
            shapes[f"blk.{layer}.{row.tensor}.weight"] = (config.width(row.out_width), config.width(row.in_width))
    return shapes


def _optional(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the tensors that may be there."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(architecture.factor_tensors, (config.rotary_dimensions // 2,))
    return shapes | {
        f"blk.{layer}.{row.tensor}.bias": (config.width(row.out_width),)
        for layer in range(config.n_layers)
        for row in architecture.linears
        if row.may_have_bias
    }


def _check_factors(tensor: GgufTensor) -> None:
    """Check that frequencies can be divided by what a tensor holds."""
    values = _vector(tensor)
    if not ((values >= 1 / MAX_STRETCH) & (values <= MAX_STRETCH)).all():  # neither is NaN
        raise UnreadableModelError(
            f"divides rotary frequencies by something that is no usual positive number ({tensor.name})",
            advice="The file is damaged; fetch it again.",
        )


def _vector(tensor: GgufTensor) -> FloatArray:
    """View a tensor of F32."""
    return tensor.packed.view(np.float32)


def _ignored(name: str, architecture: Architecture) -> bool:
    return name.split(".", 2)[-1] in architecture.ignored


def _rotary_heads(row: LinearRow, config: ModelConfig) -> int:
    return config.width(row.out_width) // config.head_dim if row.rotary else 0
