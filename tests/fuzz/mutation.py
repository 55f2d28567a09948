"""Changes to inputs that a fuzzer of bytes would hardly find: to one value inside CBOR, or repetitions in text.

Pure: a generator of random numbers decides, so hypothesis and atheris share this, and a seed gives the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeAlias

import cbor2

from agent.crypto import canonical
from agent.errors import ProtocolError
from tests.fuzz.target import Form

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead to a value inside another one."""

MAX_VALUE_BYTES = 1 << 20
_INTEGERS = (
    0,
    1,
    2,
    16,
    255,
    256,
    16_384,
    65_536,
    90_112,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -(2**63),
)
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    b"",
    "\x1b[2J",
    "a" * 64,
    "é" * 300,
    b"\0" * 32,
    0.0,
    -0.5,
    5e-324,
    1e300,
    [],
    {},
)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Give the path of every value inside a value, itself included."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def at(value: Any, path: Path) -> Any:
    """Give the value at a path."""
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: Path, by: Callable[[Any], Any]) -> Any:
    """Give a copy in which the value at a path is another one."""
    if not path:
        return by(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def other(value: Any) -> Any:
    """Give another value of the same type, as near as there is."""
    ways: dict[type, Callable[[Any], Any]] = {
        bool: lambda flag: not flag,
        int: lambda number: number + 1,
        float: lambda number: number * 2 + 1,
        str: lambda text: f"{text[:-1]}{'b' if text[-1:] == 'a' else 'a'}",
        bytes: lambda data: bytes([*data[:-1], data[-1] ^ 1]) if data else b"\0",
        list: lambda items: [*items, items[-1] if items else 0],
        dict: lambda items: {**items, "z": 0},
        type(None): lambda _nothing: 0,
    }
    return ways[type(value)](value)


def mutate(data: bytes, form: Form, rng: Random, max_bytes: int) -> bytes:
    """Give a changed input of at most ``max_bytes``."""
    changed = None
    if form == "cbor":
        changed = _mutate_cbor(data, rng)
    elif form == "text" and rng.random() < 0.3:
        changed = _repeat(data, rng, max_bytes)
    return (_mutate_bytes(data, rng) if changed is None else changed)[:max_bytes]


def _mutate_cbor(data: bytes, rng: Random) -> bytes | None:
    """Change one value or two; None where the input is no CBOR, and once in a while, since broken CBOR is an input."""
    if rng.random() < 0.1:
        return None
    try:
        value: Any = canonical.decode(data, max_bytes=MAX_VALUE_BYTES)
    except ProtocolError:
        return None
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(list(places(value)))
        value = replaced(value, path, lambda found: _another(found, rng))
    try:
        return canonical.encode(value)
    except ValueError:  # nested too deeply by now, or beyond 64 bits: what the wire can carry all the same
        return cbor2.dumps(value, canonical=True)


def _another(found: Any, rng: Random) -> Any:
    """Give something in the place of a value: often of its type, at times of another."""
    kind = rng.random()
    if isinstance(found, list | dict) and kind < 0.8:
        return _rearranged(found, rng)
    if kind < 0.25 or found is None or isinstance(found, list | dict):
        return rng.choice(_OTHERS)
    if isinstance(found, bytes):
        return _mutate_bytes(found, rng)
    if isinstance(found, str):
        return _mutate_bytes(found.encode(), rng).decode(errors="replace")
    return rng.choice((other(found), found - 1, found * 2, found + rng.randint(-300, 300), *_INTEGERS))


def _rearranged(found: list[Any] | dict[str, Any], rng: Random) -> Any:
    """Take an item out, put one twice, swap two, or go one deeper."""
    items: list[Any] = list(found.items()) if isinstance(found, dict) else list(found)
    if not items:
        return [found]
    here, there = rng.randrange(len(items)), rng.randrange(len(items))
    match rng.randrange(5):
        case 0:
            del items[here]
        case 1:
            items.insert(there, items[here])
        case 2 if isinstance(found, list):
            items[here], items[there] = items[there], items[here]
        case 3 if isinstance(found, list):
            items = items * rng.randint(2, 20)
        case 4:
            return [found]
        case _:
            items[here] = (f"{items[here][0]}x", items[here][1]) if isinstance(found, dict) else None
    return dict(items) if isinstance(found, dict) else items


def _mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Change some bytes, cut some out, put some in or twice, or write a number of two to eight bytes over some."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 3)):
        here, length = rng.randrange(len(changed) + 1), rng.randint(1, 16)
        match rng.randrange(5):
            case 0:
                changed[here : here + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[here : here + length]
            case 2:
                changed[here:here] = rng.randbytes(length)
            case 3:
                changed[here:here] = changed[here : here + length]
            case 4:
                width = rng.choice((2, 4, 8))
                number = rng.choice(_INTEGERS) % (1 << 8 * width)
                changed[here : here + width] = number.to_bytes(width, rng.choice(("little", "big")))
    return bytes(changed)


def _repeat(data: bytes, rng: Random, max_bytes: int) -> bytes:
    """Put a short piece many times over: what takes a time that grows faster than the input shows only then."""
    if not data:
        return b" " * max_bytes
    here = rng.randrange(len(data))
    piece = data[here : here + rng.choice((1, 1, 2, 4, 8))]
    times = max(1, (max_bytes - len(data)) // len(piece))
    return data[:here] + piece * rng.randint(1, times) + data[here:]


def mutations(data: bytes, form: Form, seed: int, steps: int, max_bytes: int) -> bytes:
    """Give an input after several changes that a seed decides."""
    rng = Random(seed)
    for _ in range(steps):
        data = mutate(data, form, rng, max_bytes)
    return data


def pick(items: Sequence[bytes], seed: int) -> bytes:
    """Give one of some inputs."""
    return items[seed % len(items)]
