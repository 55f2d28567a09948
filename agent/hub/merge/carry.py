"""What a merge leaves for the next one, as bytes: what could not be released, and what the outer optimiser remembers.

A carry is a safetensors file whose metadata entry ``bramble-carry`` names the kind of rule that wrote it. Only that
rule reads it. Products are two tensors, ``NAME.left`` (float32, ``(out, k)``) and ``NAME.right`` (``(k, in)``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from agent.errors import MergeError
from agent.hub.merge.factors import Product
from agent.llm.adapter import FloatArray, ModulePath

_ENTRY = "bramble-carry"
_ADVICE = "The hub's state is damaged; roll back to an earlier release, whose carry is kept beside it."


def carry_to_bytes(kind: str, tensors: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Give the tensors as bytes, the same for the same numbers; nothing for nothing.

    Args:
        kind: the kind of rule that can read them back.
        tensors: finite numbers, kept as float32.
    """
    if not tensors:
        return b""
    plain = {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in sorted(tensors)}
    data: bytes = save_safetensors(plain, metadata={_ENTRY: kind})
    return data


def carry_from_bytes(kind: str, data: bytes) -> dict[str, FloatArray]:
    """Read what :func:`carry_to_bytes` gave.

    Raises:
        MergeError: the bytes are no carry, one of another kind of rule, or hold numbers that are not finite.
    """
    if not data:
        return {}
    try:
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])["__metadata__"][_ENTRY]
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as cause:
        raise MergeError(f"the carry of the last merge cannot be read: {cause}", advice=_ADVICE) from cause
    if found != kind:
        raise MergeError(
            f"the carry of the last merge is one of the rule {found!r}, not of {kind!r}",
            advice="Keep the charter's merge rule as it was, or start a new community.",
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise damaged(f"{name} does not hold finite float32 numbers")
    return dict(tensors)


def products_to_tensors(products: Mapping[ModulePath, Product], prefix: str = "") -> dict[str, NDArray[np.floating]]:
    """Give the factors of those products that have any, by the names that they have in a carry."""
    tensors: dict[str, NDArray[np.floating]] = {}
    for name, product in products.items():
        if product.rank:
            tensors[f"{prefix}{name}.left"] = product.left
            tensors[f"{prefix}{name}.right"] = product.right
    return tensors


def products_from_tensors(
    tensors: Mapping[str, FloatArray], shapes: Mapping[ModulePath, tuple[int, int]], prefix: str = ""
) -> dict[ModulePath, Product]:
    """Read what :func:`products_to_tensors` gave, in float64; other names are left alone.

    Raises:
        MergeError: a factor lacks its other half, or belongs to no such module.
    """
    products: dict[ModulePath, Product] = {}
    for key in sorted(tensors):
        stem, _, side = key.rpartition(".")
        if not key.startswith(prefix) or side not in ("left", "right"):
            continue
        module = ModulePath(stem.removeprefix(prefix))
        left, right = tensors.get(f"{stem}.left"), tensors.get(f"{stem}.right")
        if left is None or right is None or left.ndim != 2 or right.ndim != 2:
            raise damaged(f"{key} stands alone")
        product = Product(left=left.astype(np.float64), right=right.astype(np.float64))
        if shapes.get(module) != product.shape or left.shape[1] != right.shape[0]:
            raise damaged(f"{key} does not fit the adapter")
        products[module] = product
    return products


def damaged(what: str) -> MergeError:
    """Give the error for a carry whose content cannot be."""
    return MergeError(f"the carry of the last merge cannot be used: {what}", advice=_ADVICE)
