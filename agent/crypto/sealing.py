"""Sealing: what only one receiver can open.

Small things are sealed with HPKE (RFC 9180) under the hybrid KEM MLKEM768_X25519, HKDF-SHA256 and ChaCha20-Poly1305.
The API has no associated data, so whatever must be bound to a sealed value goes into ``info``. The encapsulated key
adds 1,120 bytes and the tag 16.

Large things are a stream of chunks under a fresh 32-byte key, which is sealed with HPKE. Each chunk is
ChaCha20-Poly1305 with the nonce ``7 zero bytes | u32 index | final flag`` (STREAM: Hoang, Reyhanitabar, Rogaway and
Vizár, 2015; the layout is that of age): a chunk that is cut off, swapped, repeated or changed is seen.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from agent.errors import OversizedMessageError, SealBrokenError

SEED_BYTES = 96
"""A private key: 64 bytes of ML-KEM-768 seed, then 32 bytes of X25519."""

PUBLIC_BYTES = 1216
"""A public key: 1,184 bytes of ML-KEM-768, then 32 bytes of X25519."""

SEAL_OVERHEAD = 1136
"""What sealing adds to a plaintext."""

MAX_SEAL_BYTES = 64 * 1024
"""The largest plaintext that is sealed in one piece; more goes into a stream."""

KEY_BYTES = 32
TAG_BYTES = 16
MAX_CHUNKS = 2**32 - 1

_MLKEM_SEED, _MLKEM_PUBLIC = 64, 1184
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_ADVICE = "It is dropped. If this repeats, the two sides disagree about keys: join the community again."


class SealKey:
    """A private HPKE key: an identity's long-lived one, or one made for a single round.

    It is kept as seeds, because the library has no serialised form for the hybrid key.
    """

    __slots__ = ("_private", "_seed", "public")

    public: bytes
    """1,216 bytes; what others seal to."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seal key's seed has {SEED_BYTES} bytes, not {len(seed)}")
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:_MLKEM_SEED])
        x25519 = X25519PrivateKey.from_private_bytes(seed[_MLKEM_SEED:])
        self._seed = seed
        self._private = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        """Make a fresh key."""
        return cls.from_seed(secrets.token_bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Rebuild a key from its 96 bytes.

        Raises:
            ValueError: not 96 bytes.
        """
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The 96 secret bytes this key is rebuilt from."""
        return self._seed

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Open what was sealed to this key with the same ``info``.

        Raises:
            SealBrokenError: changed, cut, sealed to another key, or with another ``info``.
            OversizedMessageError: larger than anything ``seal`` makes.
        """
        if len(sealed) > MAX_SEAL_BYTES + SEAL_OVERHEAD:
            raise _oversized(len(sealed), MAX_SEAL_BYTES + SEAL_OVERHEAD)
        if len(sealed) < SEAL_OVERHEAD:
            raise SealBrokenError("A sealed value is cut short.", advice=_ADVICE)
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise SealBrokenError(
                "A sealed value does not open: it was changed, or sealed for another key or purpose.", advice=_ADVICE
            ) from error

    def __repr__(self) -> str:
        return "SealKey(...)"


class HoldsSealKey(Protocol):
    """Whoever has a seal key, such as an identity."""

    @property
    def seal_key(self) -> SealKey:
        """The key that opens what was sealed for this holder."""
        ...


def seal(public_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal ``plaintext`` (64 KiB at most) so that only the holder of ``public_key`` opens it, knowing ``info``.

    Args:
        public_key: 1,216 bytes, from ``SealKey.public``.
        plaintext: what is sealed.
        info: everything the value must be bound to (purpose, community, sender, round).

    Raises:
        OversizedMessageError: the plaintext belongs into a stream.
        SealBrokenError: the public key is not one.
    """
    if len(plaintext) > MAX_SEAL_BYTES:
        raise _oversized(len(plaintext), MAX_SEAL_BYTES)
    if len(public_key) != PUBLIC_BYTES:
        raise SealBrokenError(f"A seal key has {PUBLIC_BYTES} bytes, not {len(public_key)}.", advice=_ADVICE)
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC:]),
        )
        return _SUITE.encrypt(plaintext, key, info)
    except ValueError as error:
        raise SealBrokenError("A seal key cannot be used: it is not a public key.", advice=_ADVICE) from error


def unseal(holder: SealKey | HoldsSealKey, sealed: bytes, info: bytes) -> bytes:
    """Open what was sealed to a key or to an identity. Raises as ``SealKey.unseal``."""
    key = holder if isinstance(holder, SealKey) else holder.seal_key
    return key.unseal(sealed, info)


def new_stream_key() -> bytes:
    """Give a fresh 32-byte key. One stream, one key: a key used for two streams gives both away."""
    return secrets.token_bytes(KEY_BYTES)


class ChunkSealer:
    """Seals the chunks of one stream, in order."""

    __slots__ = ("_cipher", "_ended", "_index")

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._index = 0
        self._ended = False

    def seal(self, chunk: bytes, *, final: bool) -> bytes:
        """Seal the next chunk; 16 bytes longer than it.

        Raises:
            ValueError: after the final chunk, or beyond 2**32 - 1 chunks.
        """
        if self._ended or self._index >= MAX_CHUNKS:
            raise ValueError("this stream has ended")
        sealed = self._cipher.encrypt(_nonce(self._index, final=final), chunk, None)
        self._index += 1
        self._ended = final
        return sealed


class ChunkOpener:
    """Opens the chunks of one stream, in order; whoever uses it must see ``finished`` before believing the whole."""

    __slots__ = ("_cipher", "_ended", "_index")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise SealBrokenError("A stream's key has the wrong size.", advice=_ADVICE)
        self._cipher = ChaCha20Poly1305(key)
        self._index = 0
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether the final chunk was opened."""
        return self._ended

    def open_into(self, sealed: bytes | memoryview, chunk: memoryview, *, final: bool) -> None:
        """Open the next chunk into memory that is there already, which is most of the time that opening takes.

        Args:
            sealed: the sealed chunk.
            chunk: writable, of its size less ``TAG_BYTES``; of no use where an error is raised.
            final: whether it is the last one.

        Raises:
            SealBrokenError: it is not the chunk that belongs here, or was changed.
        """
        if self._ended:
            raise SealBrokenError("A sealed stream goes on after its end.", advice=_ADVICE)
        try:
            self._cipher.decrypt_into(_nonce(self._index, final=final), sealed, None, chunk)
        except (InvalidTag, ValueError) as error:
            raise SealBrokenError(
                f"Chunk {self._index} of a sealed stream was changed, cut, swapped or repeated.", advice=_ADVICE
            ) from error
        if not chunk and self._index:
            raise SealBrokenError("A sealed stream ends in an empty chunk.", advice=_ADVICE)
        self._index += 1
        self._ended = final


def seal_stream(plaintext: bytes, key: bytes, chunk_bytes: int) -> list[bytes]:
    """Cut ``plaintext`` into chunks of ``chunk_bytes`` and seal each; nothing gives one empty final chunk."""
    if chunk_bytes < 1:
        raise ValueError("a chunk holds one byte at least")
    sealer = ChunkSealer(key)
    view = memoryview(plaintext)
    starts = range(0, max(len(plaintext), 1), chunk_bytes)
    return [
        sealer.seal(bytes(view[start : start + chunk_bytes]), final=start + chunk_bytes >= len(plaintext))
        for start in starts
    ]


def open_stream(chunks: Iterable[bytes | memoryview], key: bytes, max_bytes: int) -> bytearray:
    """Open a whole stream. A bytearray comes back because turning it into bytes would take as long as opening it.

    Args:
        chunks: the sealed chunks in order; views spare a copy.
        key: the stream's 32 bytes.
        max_bytes: how long the plaintext may be; judged before each chunk is opened. As much memory is set aside.

    Raises:
        SealBrokenError: any chunk missing, changed, swapped, repeated, or one too many.
        OversizedMessageError: longer than ``max_bytes``.
    """
    opener = ChunkOpener(key)
    opened = bytearray(max_bytes)
    room = memoryview(opened)
    begin = size = 0
    held: bytes | memoryview | None = None
    for chunk in chunks:
        if held is not None:
            opener.open_into(held, room[begin:size], final=False)
        begin, size, held = size, size + max(len(chunk) - TAG_BYTES, 0), chunk
        if size > max_bytes:
            raise _oversized(size, max_bytes)
    if held is None:
        raise SealBrokenError("A sealed stream has no chunks.", advice=_ADVICE)
    opener.open_into(held, room[begin:size], final=True)
    room.release()
    del opened[size:]
    return opened


def pieces(whole: bytes, size: int) -> Iterator[memoryview]:
    """Give what lies in one piece as chunks of ``size`` bytes, the last one perhaps shorter; nothing is copied."""
    view = memoryview(whole)
    return (view[begin : begin + size] for begin in range(0, len(whole), size))


def is_intact(sealed: bytes, key: bytes, index: int, *, final: bool) -> bool:
    """Say whether a sealed chunk is, unchanged, the one of this place in its stream; for chunks in any order."""
    try:
        return bool(ChaCha20Poly1305(key).decrypt(_nonce(index, final=final), sealed, None)) or index == 0
    except (InvalidTag, ValueError):
        return False


def _nonce(index: int, *, final: bool) -> bytes:
    return bytes(7) + index.to_bytes(4, "big") + (b"\1" if final else b"\0")


def _oversized(size: int, limit: int) -> OversizedMessageError:
    return OversizedMessageError(f"A sealed value of {size} bytes came where at most {limit} fit.", advice=_ADVICE)
