"""The kernel that adds packed updates up (``source/codes.c`` says what it takes)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TypeAlias

from agent.native.library import library

CodeAdder: TypeAlias = Callable[..., None]

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64


def code_adder() -> CodeAdder | None:
    """Give the kernel, over addresses and sizes that nobody checks; None where this installation has none."""
    found = library()
    return None if found is None else _adder(found)


@functools.cache
def _adder(of: ctypes.CDLL) -> CodeAdder:
    adder = of["bramble_add_codes"]
    adder.argtypes = (_COUNT, *2 * (_ADDRESS,), *3 * (_COUNT,), *4 * (_ADDRESS,))
    adder.restype = None
    return adder
