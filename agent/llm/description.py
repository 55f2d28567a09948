"""What a GGUF on disk is, in words: architecture, how its weights are stored, and whether it can be trained here."""

from __future__ import annotations

import math
import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from agent.errors import ModelError, UnreadableModelError, UnsupportedModelError
from agent.llm.ggml import format_of
from agent.llm.gguf_file import open_gguf
from agent.llm.gguf_header import Header, parse_header

FILE_TYPES: MappingProxyType[str, int] = MappingProxyType(
    {
        "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10,
        "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
        "IQ4_NL": 25, "IQ4_XS": 30,
    }
)  # fmt: skip
"""``enum llama_ftype`` (llama.h) of every recipe that can be made here, by the name that people use."""

FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
"""Formats that hold plain numbers."""

_NAMES = {number: name for name, number in FILE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """One GGUF.

    Attributes:
        title: the name that its makers gave it; empty for none.
        architecture: ``general.architecture``; empty where it says none.
        recipe: how it was quantised as a whole, such as ``Q4_K_M``; empty where it does not say.
        formats: bytes of weights by block format, largest first.
        parameters: numbers in all tensors.
        size: of the file, in bytes.
        trainable: whether Bramble can train it.
        why_not: what stands in the way, where it cannot.
    """

    title: str
    architecture: str
    recipe: str
    formats: dict[str, int]
    parameters: int
    size: int
    trainable: bool
    why_not: str

    @property
    def mix(self) -> str:
        """The recipe and the formats with more than one percent of the bytes: ``Q4_K_M: Q4_K 72 %, Q6_K 28 %``."""
        total = sum(self.formats.values()) or 1
        shares = ", ".join(f"{name} {size / total:.0%}" for name, size in self.formats.items() if size > total / 100)
        return f"{self.recipe}: {shares}" if self.recipe and self.recipe != shares.split(" ")[0] else shares


def describe_model(path: Path) -> ModelDescription:
    """Describe a GGUF, also one that cannot be trained.

    Raises:
        UnreadableModelError: missing, cut short, damaged, or no GGUF.
    """
    why_not = ""
    try:
        open_gguf(path)
    except UnsupportedModelError as error:
        why_not = error.message.removeprefix(f"{path} ")
    header = read_header(path)
    formats = _formats(header)
    kind = header.metadata.get("general.file_type")
    return ModelDescription(
        title=_text(header, "general.name"),
        architecture=_text(header, "general.architecture"),
        recipe=_NAMES.get(kind, "") if isinstance(kind, int) else "",
        formats=formats,
        parameters=sum(math.prod(entry.dimensions) for entry in header.tensors),
        size=path.stat().st_size,
        trainable=not why_not,
        why_not=why_not,
    )


def read_header(path: Path) -> Header:
    """Read the header of a GGUF of any architecture.

    Raises:
        UnreadableModelError: missing, cut short, damaged, or no GGUF.
        UnsupportedModelError: of a version or byte order that is not read here.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return parse_header(view)
    except ModelError as cause:
        raise type(cause)(f"{path} {cause.message}", advice=cause.advice) from cause
    except OSError as cause:
        raise UnreadableModelError(
            f"cannot read the model {path}: {cause.strerror}", advice="Check the path and that you may read it."
        ) from cause
    except ValueError as cause:  # mmap's word for an empty file
        raise UnreadableModelError(f"{path} is empty", advice="The download did not finish; fetch it again.") from cause


def _formats(header: Header) -> dict[str, int]:
    """Give the bytes of weights by format, largest first; a format unknown here counts under its number."""
    sizes: Counter[str] = Counter()
    for entry in header.tensors:
        elements = math.prod(entry.dimensions)
        try:
            block = format_of(entry.type_number)
        except UnsupportedModelError:
            sizes[f"type {entry.type_number}"] += elements
        else:
            sizes[block.name] += block.bytes_for(elements)
    return dict(sizes.most_common())


def _text(header: Header, key: str) -> str:
    value = header.metadata.get(key, "")
    return "".join(letter for letter in value if letter.isprintable())[:200] if isinstance(value, str) else ""
