"""Passes over memory by the C kernels of :mod:`agent.native`, each in one go, on torch's own threads."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from agent.native.kernels import Kernels, borrow_team, kernels_of
from agent.native.library import VERSION, library
from agent.training.elementwise import Activation, Seen, Turns


class NativeElementwise:
    """Implements :class:`agent.training.elementwise.Elementwise`; the results do not depend on the number of threads.

    Args:
        of: the library.
    """

    name = f"native-{VERSION}"

    def __init__(self, of: ctypes.CDLL) -> None:
        self._by_type = {torch.float32: kernels_of(of, "float32"), torch.bfloat16: kernels_of(of, "bfloat16")}

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """One pass."""
        out = torch.empty_like(gate)
        self._of(gate, up, out).gate(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel(), activation == "gelu")
        return out

    def gate_backward(self, gate: Tensor, up: Tensor, grad: Tensor, activation: Activation) -> tuple[Tensor, ...]:
        """One pass; ``grad`` becomes the gradient of the gate."""
        grad = grad.contiguous()
        out, to_up = torch.empty_like(gate), torch.empty_like(gate)
        self._of(gate, up, grad, out, to_up).gate_backward(
            gate.data_ptr(),
            up.data_ptr(),
            grad.data_ptr(),
            out.data_ptr(),
            to_up.data_ptr(),
            gate.numel(),
            activation == "gelu",
        )
        return out, grad, to_up

    def norm(self, x: Tensor, weight: Tensor, eps: float, unit: Tensor, scale: Tensor) -> Tensor:
        """One pass."""
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(unit)
        _check(torch.float32, x, weight, scale)
        _check_sizes(x.numel(), unit)
        rows = scale.numel()
        self._of(unit, out).norm(
            x.data_ptr(),
            weight.data_ptr(),
            unit.data_ptr(),
            out.data_ptr(),
            scale.data_ptr(),
            rows,
            len(weight),
            eps,
        )
        return out

    def norm_again(self, unit: Tensor, weight: Tensor) -> Tensor:
        """One pass."""
        out = torch.empty_like(unit)
        _check(torch.float32, weight)
        self._of(unit, out).norm_again(
            unit.data_ptr(), weight.data_ptr(), out.data_ptr(), unit.numel() // len(weight), len(weight)
        )
        return out

    def norm_backward(self, unit: Tensor, scale: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """One pass."""
        grad = grad.contiguous()
        out, to_x = torch.empty_like(unit), torch.empty(unit.shape, dtype=torch.float32)
        _check(torch.float32, scale, weight)
        self._of(unit, grad, out).norm_backward(
            unit.data_ptr(),
            scale.data_ptr(),
            weight.data_ptr(),
            grad.data_ptr(),
            out.data_ptr(),
            to_x.data_ptr(),
            scale.numel(),
            len(weight),
        )
        return out, to_x

    def shares(self, scores: Tensor, seen: Seen) -> Tensor:
        """Computes what is seen, and writes 0 elsewhere."""
        tiles = _tiles(scores, seen)
        self._of(scores).softmax(scores.data_ptr(), tiles, seen.rows, scores.shape[-1], seen.before, seen.window or 0)
        return scores

    def shares_backward(self, shares: Tensor, grad: Tensor, seen: Seen) -> Tensor:
        """In place."""
        tiles = _tiles(shares, seen)
        self._of(shares, grad).softmax_backward(
            shares.data_ptr(), grad.data_ptr(), tiles, seen.rows, shares.shape[-1], seen.before, seen.window or 0
        )
        return grad

    def turn(self, given: Tensor, out: Tensor, turns: Turns, scale: float, *, back: bool = False) -> None:
        """One pass, from any order in memory to any other."""
        if given.dtype != out.dtype:  # gradients of keys are added up in float32
            turned = torch.empty(given.shape, dtype=given.dtype)
            self.turn(given, turned, turns, scale, back=back)
            out.copy_(turned)
            return
        if given.shape != out.shape or given.stride(3) != 1 or out.stride(3) != 1:
            raise ValueError(f"heads {tuple(given.shape)} cannot be turned into {tuple(out.shape)}")
        segments, heads, rows, width = given.shape
        cos, sin = turns.cos, turns.sin
        _check(torch.float32, cos, sin)
        given_steps, out_steps = (_Steps(*tensor.stride()[:3]) for tensor in (given, out))
        self._by_type[given.dtype].turn(
            given.data_ptr(),
            ctypes.addressof(given_steps),
            out.data_ptr(),
            ctypes.addressof(out_steps),
            cos.data_ptr(),
            sin.data_ptr(),
            segments,
            heads,
            rows,
            width,
            cos.shape[-1],
            scale,
            back,
        )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Each row while it is in a core's cache."""
        rows, vocab = logits.shape
        if len(targets) != rows or (rows and not 0 <= int(targets.min()) <= int(targets.max()) < vocab):
            raise IndexError(f"the targets of {rows} rows are not all tokens of a vocabulary of {vocab}")
        nats = torch.empty(rows, dtype=torch.float64)
        self._of(logits).loss(logits.data_ptr(), targets.contiguous().data_ptr(), nats.data_ptr(), *logits.shape)
        return nats

    def _of(self, *tensors: Tensor) -> Kernels:
        """Give the kernels for the type of some tensors, which are contiguous and of one size."""
        first = tensors[0]
        _check(first.dtype, *tensors)
        _check_sizes(first.numel(), *tensors)
        return self._by_type[first.dtype]


_Steps = ctypes.c_int64 * 3


def _tiles(scores: Tensor, seen: Seen) -> int:
    """Count the tiles of some scores, which have a place for everything that their rows see."""
    if seen.before + seen.rows > scores.shape[-1] or scores.shape[-2] % seen.rows:
        raise ValueError(f"scores {tuple(scores.shape)} are not those of {seen}")
    return scores.numel() // (seen.rows * scores.shape[-1])


def _check(dtype: torch.dtype, *tensors: Tensor) -> None:
    """Fail rather than read what is not there.

    Raises:
        ValueError: one of the tensors is of another type, or not contiguous.
    """
    for tensor in tensors:
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"a kernel for contiguous {dtype} was given {tensor.dtype}, strides {tensor.stride()}")


def _check_sizes(count: int, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.numel() != count:
            raise ValueError(f"a kernel for {count} numbers was given {tensor.numel()}")


def native_elementwise(threads: int) -> NativeElementwise | None:
    """Give the C kernels, or None where there are none, or where they could not use torch's threads.

    Args:
        threads: that torch computes on.
    """
    found = library()
    if found is None or (not _has_team(found) and threads > 1):
        return None
    return _native(found)


@functools.cache
def _native(of: ctypes.CDLL) -> NativeElementwise:
    return NativeElementwise(of)


@functools.cache
def _has_team(of: ctypes.CDLL) -> bool:
    """Lend torch's team of threads to the kernels, where it is GNU's OpenMP library that has it.

    The functions are looked up through torch's own library, so they are those that torch itself calls, whatever other
    copies of OpenMP this process carries.
    """
    try:
        computing = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        addresses = [ctypes.cast(computing[name], ctypes.c_void_p).value or 0 for name in names]
    except (OSError, AttributeError):
        return False
    borrow_team(of, *addresses)
    return True
