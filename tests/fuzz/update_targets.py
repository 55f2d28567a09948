"""What devices and hubs learn from one another: updates, and adapters in the form in which they travel."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from agent.crypto import canonical
from agent.errors import AdapterError, ProtocolError, UpdateRefusedError
from agent.llm.adapter import from_bytes
from agent.testing import SMALL_SHAPES, random_adapter, random_delta
from agent.update.delta import start_for_rank
from agent.update.release import pack_difference, pack_whole, unpack
from agent.update.streams import BodyError, compress, expand, stated_size
from agent.update.wire import UpdateHeader, encode_update, open_update
from tests.fuzz.samples import HASHES
from tests.fuzz.target import FindingError, Target

MAX_RANK = 8
MAX_BYTES = 16_384
_HEADER = UpdateHeader(
    round=4, base_sha256=HASHES[0], start_release=HASHES[1], rank=4, alpha=8.0, tokens=4096, steps=40, seed=7
)
_MOST = MAX_RANK * sum(sum(shape) for shape in SMALL_SHAPES.values())
"""Numbers that an update to these shapes can have."""


def _update(data: bytes) -> None:
    """Read an update in each of the ways in which it is read, which must agree."""
    opened = open_update(data, expected=SMALL_SHAPES, max_rank=MAX_RANK, max_bytes=MAX_BYTES)
    if opened.layout.count > _MOST:
        raise FindingError(f"an update of {opened.layout.count:,} numbers was let in")
    delta = opened.delta()
    row = np.full(opened.layout.count, np.nan, np.float32)
    opened.write(row, 0.5)
    opened.codes(0.5)
    if not delta.is_finite or not np.isfinite(row).all() or not np.isfinite(delta.norm):
        raise FindingError("an update with a number that is not finite was let in")
    if not np.allclose(opened.layout.flatten(delta) * np.float32(0.5), row, rtol=1e-5, atol=1e-30):
        raise FindingError("an update reads otherwise when it is written over a row")


def _built_update(data: bytes) -> None:
    """Build an update of any header, modules and streams, which a fuzzer of bytes would not get through zstd."""
    try:
        parts = canonical.decode(data, max_bytes=MAX_BYTES)
    except ProtocolError:  # the input's own form, which nobody sends
        return
    match parts:
        case [dict(header), modules, list(streams)]:
            pass
        case _:
            return
    if header.get("modules") is None:
        header = {**header, "modules": canonical.encode(modules)}
    frames = [compress(canonical.encode(header)), *(compress(part) for part in streams if isinstance(part, bytes))]
    _update(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))


def _taken_apart(data: bytes) -> bytes:
    """Give an update as the target above takes it."""
    frames = []
    while data:
        length = int.from_bytes(data[:4], "big")
        frame, data = data[4 : 4 + length], data[4 + length :]
        frames.append(expand(frame, stated_size(frame)))
    header: Any = canonical.decode(frames[0], max_bytes=MAX_BYTES)
    modules = canonical.decode(header.pop("modules"), max_bytes=MAX_BYTES)
    return canonical.encode([header, modules, frames[1:]])


def _updates() -> Iterator[bytes]:
    for name, density in (("int8", 1.0), ("int4", 1.0), ("none", 1.0), ("topk", 0.1), ("topk", 1.0)):
        yield encode_update(_HEADER, random_delta(rank=4), name, density=density)
    one = dict(list(SMALL_SHAPES.items())[:1])
    for factors in ("a", "b"):
        delta = random_delta(rank=1, shapes=one, factors=factors)
        yield encode_update(
            UpdateHeader(
                round=1,
                base_sha256=HASHES[0],
                start_release=HASHES[1],
                rank=1,
                alpha=2.0,
                tokens=1,
                steps=1,
                seed=0,
                factors=factors,
            ),
            delta,
        )


def _adapter(data: bytes) -> None:
    """Read an adapter's file, and begin with it what a device begins with a release."""
    found = from_bytes(data)
    if not np.isfinite(found.scaling) or found.scaling <= 0 or found.parameter_count * 4 > len(data):
        raise FindingError(f"an adapter of scaling {found.scaling} and {found.parameter_count} numbers was let in")
    for name, factors in found.modules.items():
        if not (np.isfinite(factors.a).all() and np.isfinite(factors.b).all()):
            raise FindingError(f"an adapter with a number that is not finite was let in ({name})")
    _ = found.target_modules, found.shapes
    start_for_rank(found, found.rank)
    if from_bytes(found.to_bytes()).to_bytes() != found.to_bytes():
        raise FindingError("an adapter does not come back as it was read")


def _adapters() -> Iterator[bytes]:
    small = dict(list(SMALL_SHAPES.items())[:1])
    data = random_adapter(rank=2, shapes=small).to_bytes()
    yield data
    yield random_adapter(rank=1, seed=3).to_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    for kind, width in (("F64", 8), ("F16", 2), ("BF16", 2), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1)):
        other, place = dict(header), 0
        for name in sorted(header.keys() - {"__metadata__"}):
            size = width * int(np.prod(header[name]["shape"]))
            other[name] = {**header[name], "dtype": kind, "data_offsets": [place, place + size]}
            place += size
        head = json.dumps(other).encode()
        yield len(head).to_bytes(8, "little") + head + (rest * 2)[:place]


_BASE = random_adapter(rank=1, seed=5, shapes=dict(list(SMALL_SHAPES.items())[:1])).to_bytes()
_NEWER = random_adapter(rank=1, seed=6, shapes=dict(list(SMALL_SHAPES.items())[:1])).to_bytes()


def _form(data: bytes) -> None:
    """Read an adapter in either form in which a hub sends it."""
    size = len(_BASE)
    found = unpack(data, size, lambda sha256: _BASE if sha256 == hashlib.sha256(_BASE).hexdigest() else None)
    if len(found) != size:
        raise FindingError(f"{len(found)} bytes came out where {size} were announced")
    with contextlib.suppress(AdapterError):
        from_bytes(found)


def _forms() -> Iterator[bytes]:
    yield pack_whole(_NEWER)
    difference = pack_difference(_NEWER, _BASE)
    assert difference is not None
    yield difference
    yield pack_whole(_NEWER + b"more")


def targets() -> Iterator[Target]:
    """Give the targets of this file."""
    refused = (UpdateRefusedError,)
    yield Target(name="update", run=_update, seeds=_updates, refusals=refused, max_bytes=MAX_BYTES)
    yield Target(
        name="update-built",
        run=_built_update,
        seeds=lambda: map(_taken_apart, _updates()),
        refusals=(UpdateRefusedError,),
        max_bytes=MAX_BYTES,
        form="cbor",
    )
    yield Target(name="adapter-safetensors", run=_adapter, seeds=_adapters, refusals=(AdapterError,))
    yield Target(name="adapter-form", run=_form, seeds=_forms, refusals=(BodyError,))
