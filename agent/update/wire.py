"""The wire form of an update.

::

    u32 big-endian   length of the next frame
    header           one zstd frame (RFC 8878) of canonical CBOR, at most 256 KiB: version, round, base, start, rank,
                     alpha, tokens, steps, seed, factors, compression, density, and
                     modules: a byte string, CBOR of a list of [path, out_features, in_features] in sorted order
    body             the modules' dA and dB in that order, without the factor that was not trained, as one row of
                     numbers in the named compression (:mod:`agent.update.compression`); each of its streams is
                     a u32 length and one zstd frame

Sealing and signing happen outside. A decoder checks everything that the header says against what is expected before it
expands the body, whose sizes follow from the header, and the body's numbers before it gives them out. So whatever comes
in, what comes out is an update of known shapes with finite numbers, or a refusal with a stable reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import cast

import numpy as np

from agent.crypto import canonical
from agent.errors import MalformedMessageError, OversizedMessageError, UpdateRefusedError
from agent.llm.adapter import MAX_RANK, FloatArray, ModulePath
from agent.update import streams
from agent.update.codes import Codes
from agent.update.compression import NAMES, Blockwise, Compression, compression_of
from agent.update.delta import Delta, Factors
from agent.update.layout import Layout, layout_of
from agent.update.streams import BodyError

VERSION = 2
MAX_HEADER_BYTES = 256 * 1024
_LENGTH_BYTES = 4
_FIELDS = frozenset(
    {
        "version",
        "round",
        "base",
        "start",
        "rank",
        "alpha",
        "tokens",
        "steps",
        "seed",
        "factors",
        "compression",
        "density",
        "modules",
    }
)
_FACTORS = ("both", "a", "b")
_HASH_CHARACTERS = 64
_HEX = frozenset("0123456789abcdef")
_ADVICE = "The device should fetch the current release and train again; if it keeps failing, update its Bramble."


class Reason(StrEnum):
    """Why an update is refused: stable words, for logs, metrics and receipts."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    VERSION = "version"
    FACTORS = "factors"
    COMPRESSION = "compression"
    RANK = "rank"
    ALPHA = "alpha"
    MODULES = "modules"
    SHAPE = "shape"
    SIZE = "size"
    NOT_FINITE = "not-finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeader:
    """What an update says about itself.

    Attributes:
        round: the round it was made for.
        base_sha256: hex SHA-256 of the base.
        start_release: hex SHA-256 of the release's adapter that training started from.
        rank: the device's rank.
        alpha: numerator of the scaling at that rank.
        tokens: tokens trained on, counted once for each time they were seen.
        steps: optimiser steps.
        seed: what training drew from.
        factors: which factors were trained; the others are not in it.
    """

    round: int
    base_sha256: str
    start_release: str
    rank: int
    alpha: float
    tokens: int
    steps: int
    seed: int
    factors: Factors = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedUpdate:
    """An update in its wire form.

    Attributes:
        data: its bytes.
        sent: what :func:`decode_update` will make of them, to the bit.
    """

    data: bytes
    sent: Delta


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedUpdate:
    """An update whose header was checked, and whose body is still compressed.

    Attributes:
        header: what it says about itself.
        layout: what its numbers are; updates of one layout can be added up in one row.
        compression: the name of it.
        density: share of the numbers that ``topk`` sends; the others do not use it.
    """

    header: UpdateHeader
    layout: Layout
    compression: str
    density: float
    _coder: Compression
    _body: memoryview

    def delta(self) -> Delta:
        """Give its numbers; arrays may be read-only.

        Raises:
            UpdateRefusedError: the body is not what the header says, or a number in it cannot be.
        """
        count = self.layout.count
        try:
            flat = self._coder.unpack(streams.split(self._body, self._coder.sizes(count)), count)
        except BodyError as cause:
            raise _refused(Reason(cause.reason), str(cause)) from cause
        return self.layout.restore(flat)

    def write(self, row: FloatArray, weight: float) -> None:
        """Write ``weight`` times its numbers over a row: as :meth:`delta`, but without arrays of its own.

        Args:
            row: float32, contiguous, of the layout's count; untouched where the update is refused.
            weight: of this update in a sum.

        Raises:
            UpdateRefusedError: as :meth:`delta`.
        """
        if row.shape != (self.layout.count,) or row.dtype != np.float32 or not row.flags.c_contiguous:
            raise ValueError("an update is written over one contiguous row of float32, as long as the update")
        try:
            self._coder.write(streams.split(self._body, self._coder.sizes(row.size)), row, weight)
        except BodyError as cause:
            raise _refused(Reason(cause.reason), str(cause)) from cause

    def codes(self, weight: float) -> Codes | None:
        """Give ``weight`` times its numbers as they are packed; None where they are not all codes of one step a block.

        Raises:
            UpdateRefusedError: as :meth:`delta`.
        """
        if not isinstance(self._coder, Blockwise):
            return None
        count = self.layout.count
        try:
            return self._coder.codes(streams.split(self._body, self._coder.sizes(count)), count, weight)
        except BodyError as cause:
            raise _refused(Reason(cause.reason), str(cause)) from cause


def encode(
    header: UpdateHeader,
    delta: Delta,
    compression: str = "int8",
    *,
    density: float = 1.0,
    rng: np.random.Generator | None = None,
) -> EncodedUpdate:
    """Give the wire form of an update, and what the receiver will read from it.

    Args:
        header: what it says about itself.
        delta: finite numbers, of the header's rank and factors.
        compression: one of :data:`agent.update.compression.NAMES`.
        density: share of the numbers that ``topk`` sends.
        rng: decides stochastic rounding; drawn from the update itself if not given, so that encoding the same update
            again gives the same bytes while no two updates round alike.

    Raises:
        ValueError: the delta cannot be sent as it is.
    """
    if (delta.rank, delta.factors) != (header.rank, header.factors) or not delta.modules or not delta.is_finite:
        raise ValueError(
            "an update must have its header's rank and factors, a module at least, and only finite numbers"
        )
    layout = layout_of(delta)
    flat = layout.flatten(delta)
    head = canonical.encode(
        {
            "version": VERSION,
            "round": header.round,
            "base": header.base_sha256,
            "start": header.start_release,
            "rank": header.rank,
            "alpha": float(header.alpha),
            "tokens": header.tokens,
            "steps": header.steps,
            "seed": header.seed,
            "factors": header.factors,
            "compression": compression,
            "density": float(density),
            "modules": canonical.encode([[str(name), *shape] for name, shape in layout.modules.items()]),
        }
    )
    if rng is None:
        digest = sha256(head)
        digest.update(flat.data)
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest()[:16], "big")))
    coder = compression_of(compression, density)
    parts = coder.pack(flat, rng)
    frame = streams.compress(head)
    data = len(frame).to_bytes(_LENGTH_BYTES, "big") + frame + streams.join(parts)
    return EncodedUpdate(data=data, sent=layout.restore(coder.unpack(parts, layout.count)))


def encode_update(
    header: UpdateHeader,
    delta: Delta,
    compression: str = "int8",
    *,
    density: float = 1.0,
    rng: np.random.Generator | None = None,
) -> bytes:
    """Give the bytes of an update; see :func:`encode`."""
    return encode(header, delta, compression, density=density, rng=rng).data


def open_update(
    data: bytes | bytearray, *, expected: Mapping[ModulePath, tuple[int, int]], max_rank: int, max_bytes: int
) -> OpenedUpdate:
    """Read an update's header, trusting nothing in it.

    Args:
        data: what :func:`encode` gave, or anything at all.
        expected: ``(out_features, in_features)`` of every module that may be in it.
        max_rank: the highest rank accepted.
        max_bytes: how large ``data`` may be.

    Raises:
        UpdateRefusedError: it is not a usable update; ``reason`` is one of :class:`Reason`.
    """
    if len(data) > max_bytes:
        raise _refused(Reason.OVERSIZED, f"it has {len(data):,} bytes, {max_bytes:,} are allowed")
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    if len(data) < _LENGTH_BYTES + length:
        raise _refused(Reason.MALFORMED, "its header is longer than the update")
    view = memoryview(data)
    fields = _fields(view[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header = _header(fields, min(max_rank, MAX_RANK))
    modules = _modules(fields["modules"], expected)
    name, density = fields["compression"], fields["density"]
    if not isinstance(name, str) or name not in NAMES:
        raise _refused(Reason.COMPRESSION, "its compression is unknown here")
    if not isinstance(density, float) or not 0 < density <= 1:
        raise _refused(Reason.COMPRESSION, "its density is not a share")
    return OpenedUpdate(
        header=header,
        layout=Layout(rank=header.rank, factors=header.factors, modules=modules),
        compression=name,
        density=density,
        _coder=compression_of(name, density),
        _body=view[_LENGTH_BYTES + length :],
    )


def decode_update(
    data: bytes | bytearray, *, expected: Mapping[ModulePath, tuple[int, int]], max_rank: int, max_bytes: int
) -> tuple[UpdateHeader, Delta]:
    """Read a whole update, trusting nothing in it; arguments and errors are those of :func:`open_update`."""
    opened = open_update(data, expected=expected, max_rank=max_rank, max_bytes=max_bytes)
    return opened.header, opened.delta()


def _fields(frame: memoryview) -> dict[str, object]:
    """Decode the header's CBOR and check which fields are there."""
    try:
        size = streams.stated_size(frame)
        if size > MAX_HEADER_BYTES:
            raise _refused(Reason.MALFORMED, f"its header states {size:,} bytes")
        fields = canonical.decode(streams.expand(frame, size), max_bytes=MAX_HEADER_BYTES)
    except (BodyError, MalformedMessageError, OversizedMessageError) as cause:
        raise _refused(Reason.MALFORMED, f"its header cannot be read: {cause}") from cause
    if not isinstance(fields, dict) or "version" not in fields:
        raise _refused(Reason.MALFORMED, "its header has no version")
    if fields["version"] != VERSION:
        raise _refused(Reason.VERSION, f"it is of version {str(fields['version'])[:20]}, not {VERSION}")
    if set(fields) != _FIELDS:
        raise _refused(Reason.MALFORMED, "its header lacks a field or has one too many")
    return dict(fields)


def _header(fields: Mapping[str, object], max_rank: int) -> UpdateHeader:
    """Check every field that is a single value."""
    rank = _integer(fields, "rank", 1 << 32)
    if not 1 <= rank <= max_rank:
        raise _refused(Reason.RANK, f"it has rank {rank}, from 1 to {max_rank} is allowed")
    alpha = fields["alpha"]
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha <= 0:
        raise _refused(Reason.ALPHA, "its alpha is not a positive number")
    return UpdateHeader(
        round=_integer(fields, "round", 1 << 48),
        base_sha256=_hash(fields, "base"),
        start_release=_hash(fields, "start"),
        rank=rank,
        alpha=alpha,
        tokens=_integer(fields, "tokens", 1 << 48),
        steps=_integer(fields, "steps", 1 << 48),
        seed=_integer(fields, "seed", 1 << 64),
        factors=_factors(fields["factors"]),
    )


def _factors(value: object) -> Factors:
    if not isinstance(value, str) or value not in _FACTORS:
        raise _refused(Reason.FACTORS, "it does not say which factors it has")
    return cast("Factors", value)


def _integer(fields: Mapping[str, object], name: str, below: int) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise _refused(Reason.MALFORMED, f"its field {name} is out of range")
    return value


def _hash(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or len(value) != _HASH_CHARACTERS or not _HEX.issuperset(value):
        raise _refused(Reason.MALFORMED, f"its field {name} is no SHA-256")
    return value


def _modules(listed: object, expected: Mapping[ModulePath, tuple[int, int]]) -> dict[ModulePath, tuple[int, int]]:
    """Check that the modules are known ones, in order, each once, with the shapes that they have."""
    if not isinstance(listed, bytes):
        raise _refused(Reason.MALFORMED, "its module list is no byte string")
    modules = dict(_listed_modules(listed))
    if modules == expected:
        return modules
    for name, shape in modules.items():
        if name not in expected:
            raise _refused(Reason.MODULES, f"module {name[:80]!r} is unknown")
        if shape != expected[name]:
            raise _refused(Reason.SHAPE, f"module {name} has the wrong shape")
    return modules


@lru_cache(maxsize=16)
def _listed_modules(listed: bytes) -> tuple[tuple[ModulePath, tuple[int, int]], ...]:
    """Read a module list. Nearly all updates have the same one, and reading it takes as long as the rest of them."""
    try:
        items = canonical.decode(listed, max_bytes=MAX_HEADER_BYTES)
    except (MalformedMessageError, OversizedMessageError) as cause:
        raise _refused(Reason.MALFORMED, f"its module list cannot be read: {cause}") from cause
    if not isinstance(items, list) or not items:
        raise _refused(Reason.MODULES, "it lists no modules")
    modules: list[tuple[ModulePath, tuple[int, int]]] = []
    last = ""
    for item in items:
        if not isinstance(item, list) or [type(part) for part in item] != [str, int, int]:
            raise _refused(Reason.MALFORMED, "an entry of its module list is not [path, out, in]")
        name, out, in_ = cast("tuple[str, int, int]", item)
        if name <= last:
            raise _refused(Reason.MODULES, f"module {name[:80]!r} is repeated or out of order")
        modules.append((ModulePath(name), (out, in_)))
        last = name
    return tuple(modules)


def _refused(reason: Reason, what: str) -> UpdateRefusedError:
    return UpdateRefusedError(f"the update is refused: {what}", advice=_ADVICE, reason=reason.value)
