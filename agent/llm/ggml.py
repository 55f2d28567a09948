"""ggml's own dequantisers, called through ctypes on the library that llama-cpp-python carries.

Every block format that llama.cpp runs can be unpacked here at the speed of ggml's C code, without importing
``llama_cpp`` (and so without loading llama.cpp itself) in a process that only trains.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.errors import UnsupportedModelError

GgmlType = NewType("GgmlType", int)
"""A value of ``enum ggml_type`` (ggml.h)."""

Packed: TypeAlias = NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float32]

F32 = GgmlType(0)
F16 = GgmlType(1)
Q8_0 = GgmlType(8)

_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_INTEGER_NAMES = {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_TO_FLOAT_TYPE: TypeAlias = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How one ggml type is laid out, and how it is unpacked.

    Attributes:
        type: its number in ``enum ggml_type``.
        name: as people write it, such as ``Q4_K``.
        block_elements: how many weights one block holds; a row is a whole number of blocks.
        block_bytes: how many bytes one block takes.
        to_float: ``(source address, destination address, elements)``; None for F32, which needs no unpacking.
    """

    type: GgmlType
    name: str
    block_elements: int
    block_bytes: int
    to_float: _TO_FLOAT_TYPE | None

    def bytes_for(self, elements: int) -> int:
        """Give the packed size in bytes of a whole number of blocks."""
        return elements // self.block_elements * self.block_bytes


def library_path() -> Path:
    """Give the path of ``libggml-base`` inside the installed llama-cpp-python, without importing it."""
    spec = importlib.util.find_spec("llama_cpp")
    name = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(sys.platform, "libggml-base.so")
    for package in (spec.submodule_search_locations or []) if spec else []:
        for folder in ("lib", "bin"):
            path = Path(package) / folder / name
            if path.exists():
                return path
    raise UnsupportedModelError(
        f"{name} is not where llama-cpp-python keeps it",
        advice="Install llama-cpp-python again: pip install --force-reinstall --no-deps llama-cpp-python.",
    )


@functools.cache
def formats() -> MappingProxyType[GgmlType, BlockFormat]:
    """Give every format that this build of ggml can unpack to float32, by type number."""
    library = ctypes.CDLL(str(library_path()))
    traits_of = library.ggml_get_type_traits
    traits_of.argtypes = [ctypes.c_int]
    traits_of.restype = ctypes.POINTER(_TypeTraits)
    found: dict[GgmlType, BlockFormat] = {}
    for number, name in _NAMES.items():
        traits = traits_of(number).contents
        if traits.type_name is None or traits.type_name.decode().upper() != name:
            continue  # another build of ggml, with other numbers: better unsupported than wrong
        if traits.to_float is None and number != F32:
            continue
        found[GgmlType(number)] = BlockFormat(
            type=GgmlType(number),
            name=name,
            block_elements=traits.blck_size,
            block_bytes=traits.type_size,
            to_float=None if traits.to_float is None else _TO_FLOAT(traits.to_float),
        )
    return MappingProxyType(found)


def format_of(number: int, *, tensor: str = "a tensor") -> BlockFormat:
    """Give the format with this type number.

    Raises:
        UnsupportedModelError: ggml cannot unpack it here.
    """
    known = formats().get(GgmlType(number))
    if known is None:
        what = _INTEGER_NAMES.get(number, f"number {number}")
        raise UnsupportedModelError(
            f"{tensor} is stored as ggml type {what}, which cannot be unpacked here",
            advice="Use a GGUF in one of: " + ", ".join(f.name for f in formats().values()) + ".",
        )
    return known


@functools.cache
def _cpu_library() -> ctypes.CDLL | None:
    """Give ggml's vectorised conversions where this build keeps them in a library of their own."""
    base = library_path()
    ctypes.CDLL(str(base))
    path = base.with_name(base.name.replace("ggml-base", "ggml-cpu"))
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


@functools.cache
def _conversion(vectorised: str, plain: str) -> _TO_FLOAT_TYPE:
    """Find a row conversion ``(source address, destination address, elements)``, the vectorised one if there is one."""
    library = _cpu_library()
    function = getattr(library, vectorised, None) if library is not None else None
    if function is None:
        function = getattr(ctypes.CDLL(str(library_path())), plain)
    return _TO_FLOAT(ctypes.cast(function, ctypes.c_void_p).value or 0)


def narrow_to_bfloat16(wide: FloatArray, out: Packed) -> None:
    """Round float32 to bfloat16, to nearest even.

    Args:
        wide: C-contiguous float32.
        out: C-contiguous writeable uint8, two bytes for each of them; overwritten.

    Raises:
        ValueError: sizes or layouts do not agree; nothing was written.
    """
    if wide.dtype != np.float32 or not wide.flags.c_contiguous:
        raise ValueError("the numbers must be contiguous float32")
    if out.dtype != np.uint8 or out.size != 2 * wide.size or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"{out.size} bytes are no room for {wide.size} numbers of bfloat16")
    convert = _conversion("ggml_cpu_fp32_to_bf16", "ggml_fp32_to_bf16_row")
    convert(wide.ctypes.data, out.ctypes.data, wide.size)


def dequantize(block_format: BlockFormat, packed: Packed, out: FloatArray) -> None:
    """Unpack ``packed`` into ``out``, whose number of elements says how much.

    Args:
        block_format: the format of ``packed``.
        packed: C-contiguous uint8, exactly the bytes of ``out.size`` elements.
        out: C-contiguous float32 of any shape whose size is a whole number of blocks; overwritten.

    Raises:
        ValueError: sizes or layouts do not agree; nothing was written.
    """
    if out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("the output must be writeable, contiguous float32")
    if packed.dtype != np.uint8 or not packed.flags.c_contiguous:
        raise ValueError("packed weights must be contiguous bytes")
    if out.size % block_format.block_elements or packed.size != block_format.bytes_for(out.size):
        raise ValueError(f"{packed.size} bytes of {block_format.name} are not {out.size} elements")
    if block_format.type == F16:  # the traits' own function converts one number at a time
        _conversion("ggml_cpu_fp16_to_fp32", "ggml_fp16_to_fp32_row")(packed.ctypes.data, out.ctypes.data, out.size)
    elif block_format.to_float is None:
        out.reshape(-1)[:] = packed.reshape(-1).view(np.float32)
    else:
        block_format.to_float(packed.ctypes.data, out.ctypes.data, out.size)
