"""The wire form of an update.

::

    u32 big-endian   length of the header, at most 256 KiB
    header           canonical CBOR: version, round, base, start, rank, alpha, tokens, steps, seed, compression,
                     modules: a list of [path, out_features, in_features] in sorted order
    body             one zstd frame (RFC 8878) with the modules' dA and dB in that order, in the named compression

Sealing and signing happen outside. A decoder checks everything that the header says against what is expected before it
expands the body, and the body's numbers before it gives them out, so whatever comes in, what comes out is an update of
known shapes with finite numbers, or a refusal with a stable reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

import numpy as np

from agent.crypto import canonical
from agent.errors import MalformedMessageError, OversizedMessageError, UpdateRefusedError
from agent.llm.adapter import MAX_RANK, LoraFactors, ModulePath
from agent.update.compression import COMPRESSIONS, BodyError, compress, expand
from agent.update.delta import Delta

VERSION = 1
MAX_HEADER_BYTES = 256 * 1024
_LENGTH_BYTES = 4
_FIELDS = frozenset(
    {"version", "round", "base", "start", "rank", "alpha", "tokens", "steps", "seed", "compression", "modules"}
)
_HASH_CHARACTERS = 64
_HEX = frozenset("0123456789abcdef")
_ADVICE = "The device should fetch the current release and train again; if it keeps failing, update its Bramble."


class Reason(StrEnum):
    """Why an update is refused: stable words, for logs, metrics and receipts."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    VERSION = "version"
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
    """

    round: int
    base_sha256: str
    start_release: str
    rank: int
    alpha: float
    tokens: int
    steps: int
    seed: int


def encode_update(
    header: UpdateHeader, delta: Delta, compression: str = "int8", *, rng: np.random.Generator | None = None
) -> bytes:
    """Give the bytes of an update.

    Args:
        header: what it says about itself.
        delta: finite numbers, of the header's rank.
        compression: ``int8`` or ``none``.
        rng: decides stochastic rounding; drawn from the update itself if not given, so that encoding the same update
            again gives the same bytes while no two updates round alike.

    Raises:
        ValueError: the delta cannot be sent as it is.
    """
    if delta.rank != header.rank or not delta.modules or not delta.is_finite:
        raise ValueError("an update must have its header's rank, at least one module, and only finite numbers")
    names = sorted(delta.modules)
    tensors = [np.ascontiguousarray(part) for name in names for part in (delta.modules[name].a, delta.modules[name].b)]
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
            "compression": compression,
            "modules": [[str(name), *delta.modules[name].shape] for name in names],
        }
    )
    if rng is None:
        digest = sha256(head)
        for tensor in tensors:
            digest.update(tensor.data)
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest()[:16], "big")))
    body = compress(COMPRESSIONS[compression].pack(tensors, rng))
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + body


def decode_update(
    data: bytes, *, expected: Mapping[ModulePath, tuple[int, int]], max_rank: int, max_bytes: int
) -> tuple[UpdateHeader, Delta]:
    """Read an update, trusting nothing in it.

    Args:
        data: what :func:`encode_update` gave, or anything at all.
        expected: ``(out_features, in_features)`` of every module that may be in it.
        max_rank: the highest rank accepted.
        max_bytes: how large ``data`` may be.

    Raises:
        UpdateRefusedError: it is not a usable update; ``reason`` is one of :class:`Reason`.
    """
    if len(data) > max_bytes:
        raise _refused(Reason.OVERSIZED, f"it has {len(data):,} bytes, {max_bytes:,} are allowed")
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    if len(data) < _LENGTH_BYTES or length > min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise _refused(Reason.MALFORMED, "its header is longer than the update")
    fields = _fields(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header = _header(fields, min(max_rank, MAX_RANK))
    modules = _modules(fields["modules"], expected)
    name = fields["compression"]
    compression = COMPRESSIONS.get(name) if isinstance(name, str) else None
    if compression is None:
        raise _refused(Reason.COMPRESSION, "its compression is unknown here")
    shapes = [shape for out, in_ in modules.values() for shape in ((header.rank, in_), (out, header.rank))]
    try:
        body = expand(data[_LENGTH_BYTES + length :], compression.plain_size(shapes))
        tensors = compression.unpack(body, shapes)
    except BodyError as cause:
        raise _refused(Reason(cause.reason), str(cause)) from cause
    pairs = zip(tensors[0::2], tensors[1::2], strict=True)
    factors = {module: LoraFactors(a=a, b=b) for module, (a, b) in zip(modules, pairs, strict=True)}
    return header, Delta(rank=header.rank, modules=factors)


def _fields(head: bytes) -> dict[str, object]:
    """Decode the header's CBOR and check which fields are there."""
    try:
        fields = canonical.decode(head, max_bytes=MAX_HEADER_BYTES)
    except (MalformedMessageError, OversizedMessageError) as cause:
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
    )


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
    if not isinstance(listed, list) or not 1 <= len(listed) <= len(expected):
        raise _refused(Reason.MODULES, f"it lists no modules, or more than the {len(expected)} there are")
    modules: dict[ModulePath, tuple[int, int]] = {}
    last = ""
    for item in listed:
        if not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], str):
            raise _refused(Reason.MALFORMED, "an entry of its module list is not [path, out, in]")
        name = ModulePath(item[0])
        if name not in expected or name <= last:
            raise _refused(Reason.MODULES, f"module {item[0][:80]!r} is unknown, repeated or out of order")
        if (item[1], item[2]) != expected[name] or isinstance(item[1], bool) or isinstance(item[2], bool):
            raise _refused(Reason.SHAPE, f"module {name} has the wrong shape")
        modules[name] = expected[name]
        last = name
    return modules


def _refused(reason: Reason, what: str) -> UpdateRefusedError:
    return UpdateRefusedError(f"the update is refused: {what}", advice=_ADVICE, reason=reason.value)
