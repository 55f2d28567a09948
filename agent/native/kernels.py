"""The kernels as functions of Python, over addresses and sizes.

Nothing is checked here: whoever calls one answers for the sizes, and for keeping what the addresses point to. What each
takes and does is beside its definition in ``source/``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

Number: TypeAlias = Literal["float32", "bfloat16"]
Kernel: TypeAlias = Callable[..., None]

_ADDRESS, _COUNT, _FLOAT, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class Kernels:
    """All kernels for one type of numbers.

    Args:
        of: the library.
        number: the type.
    """

    def __init__(self, of: ctypes.CDLL, number: Number) -> None:
        def kernel(name: str, *takes: Any) -> Kernel:
            return _function(of, f"bramble_{name}_{number}", *takes)

        self.gate = kernel("gate", *3 * [_ADDRESS], _COUNT, _FLAG)
        """gate.h: gate, up, out, count, gelu."""
        self.gate_backward = kernel("gate_backward", *5 * [_ADDRESS], _COUNT, _FLAG)
        """gate.h: gate, up, grad, out, to_up, count, gelu."""
        self.norm = kernel("norm", *5 * [_ADDRESS], *2 * [_COUNT], _FLOAT)
        """norm.h: x, weight, unit, out, scale, rows, width, eps."""
        self.norm_again = kernel("norm_again", *3 * [_ADDRESS], *2 * [_COUNT])
        """norm.h: unit, weight, out, rows, width."""
        self.norm_backward = kernel("norm_backward", *6 * [_ADDRESS], *2 * [_COUNT])
        """norm.h: unit, scale, weight, grad, out, to_x, rows, width."""
        self.softmax = kernel("softmax", _ADDRESS, *5 * [_COUNT])
        """softmax.h: scores, tiles, rows, columns, before, window."""
        self.softmax_backward = kernel("softmax_backward", *2 * [_ADDRESS], *5 * [_COUNT])
        """softmax.h: shares, grad, tiles, rows, columns, before, window."""
        self.loss = kernel("loss", *3 * [_ADDRESS], *2 * [_COUNT])
        """softmax.h: logits, targets, nats, rows, vocab."""
        self.turn = kernel("turn", *6 * [_ADDRESS], *5 * [_COUNT], _FLOAT, _FLAG)
        """turn.h: given, its steps, out, its steps, cos, sin, segments, heads, rows, width, half, scale, back."""


@functools.cache
def kernels_of(of: ctypes.CDLL, number: Number) -> Kernels:
    """Give the kernels of a library for a type of numbers."""
    return Kernels(of, number)


def borrow_team(of: ctypes.CDLL, parallel: int, mine: int, size: int) -> None:
    """Let kernels share the threads of an OpenMP library that computes in this process already.

    Args:
        of: the library of the kernels.
        parallel: address of its ``GOMP_parallel``; 0 for none.
        mine: of its ``omp_get_thread_num``.
        size: of its ``omp_get_num_threads``.
    """
    _function(of, "bramble_borrow_team", *3 * [_ADDRESS])(parallel, mine, size)


def _function(of: ctypes.CDLL, name: str, *takes: Any) -> Kernel:
    function = of[name]  # a function of its own, unlike the attribute, so that nobody else sets its arguments
    function.argtypes = takes
    function.restype = None
    return function
