"""What a round could not release: products of full precision that wait for the next merge.

As bytes it is a safetensors file with ``MODULE.left`` (float32, ``(out, k)``) and ``MODULE.right`` (float32,
``(k, in)``) for each module that has any; as a product it is a change of the layer's weight before scaling.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from agent.errors import MergeError
from agent.hub.merge.factors import Product
from agent.llm.adapter import FloatArray, ModulePath

_ADVICE = "The hub's state is damaged; roll back to an earlier release, whose carry is kept beside it."


def carry_to_bytes(products: Mapping[ModulePath, Product]) -> bytes:
    """Give the products as bytes, the same for the same numbers; nothing for nothing."""
    tensors: dict[str, FloatArray] = {}
    for name in sorted(products):
        if products[name].rank:
            tensors[f"{name}.left"] = np.ascontiguousarray(products[name].left, dtype=np.float32)
            tensors[f"{name}.right"] = np.ascontiguousarray(products[name].right, dtype=np.float32)
    if not tensors:
        return b""
    data: bytes = save_safetensors(dict(tensors))
    return data


def carry_from_bytes(data: bytes, shapes: Mapping[ModulePath, tuple[int, int]]) -> dict[ModulePath, Product]:
    """Read what :func:`carry_to_bytes` gave.

    Raises:
        MergeError: the bytes are no carry, or one of other modules or shapes.
    """
    if not data:
        return {}
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as cause:
        raise MergeError(f"the carry of the last merge cannot be read: {cause}", advice=_ADVICE) from cause
    products: dict[ModulePath, Product] = {}
    for key in sorted(tensors):
        name, _, side = key.rpartition(".")
        module = ModulePath(name)
        left, right = tensors.get(f"{name}.left"), tensors.get(f"{name}.right")
        if side not in ("left", "right") or left is None or right is None or left.ndim != 2 or right.ndim != 2:
            raise MergeError(f"the carry of the last merge has a stray tensor {key}", advice=_ADVICE)
        product = Product(left=left.astype(np.float64), right=right.astype(np.float64))
        fits = module in shapes and product.shape == shapes[module] and left.shape[1] == right.shape[0]
        if not fits or not (np.isfinite(left).all() and np.isfinite(right).all()):
            raise MergeError(f"the carry of the last merge does not fit module {name}", advice=_ADVICE)
        products[module] = product
    return products
