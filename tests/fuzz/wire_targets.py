"""What comes over the broker: CBOR, envelopes, bodies, seals, transfers, invites, topics, addresses."""

from __future__ import annotations

import atexit
import base64
import contextlib
import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.crypto import canonical, envelope
from agent.crypto.identity import PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.crypto.sealing import open_stream, seal, seal_stream, unseal
from agent.errors import (
    BadSignatureError,
    CorruptStateError,
    InviteError,
    PlaintextRefusedError,
    ProtocolError,
    SettingsError,
)
from agent.federation.invite import PREFIX, parse_invite
from agent.federation.messages import KINDS, Body, Charter, CharterNotice, Offer
from agent.federation.sealing import check_of
from agent.transport import topics
from agent.transport.address import parse_brokers, without_credentials
from agent.transport.transfer import MAX_CHUNKS, IncomingTransfer, TransferPlan, TransferStore
from tests.fuzz import samples
from tests.fuzz.target import FindingError, Target

KEY = b"k" * 32
MAX_PLAIN = 2048
_DOMAIN = b"bramble/envelope/2\0"


def _canonical(data: bytes) -> None:
    value = canonical.decode(data, max_bytes=4096)
    if canonical.encode(value) != data:
        raise FindingError("a value has two encodings")


def _envelope(data: bytes) -> None:
    """Read it as it is, and once more after its own sender signed it: what is behind the signature is reached, too."""
    with contextlib.suppress(BadSignatureError):
        _verified(data)
    value = canonical.decode(data, max_bytes=envelope.MAX_BYTES)
    if isinstance(value, list) and len(value) > 1:
        digest = hashlib.sha512(_DOMAIN + canonical.encode(value[:7])).digest()
        _verified(canonical.encode([*value[:7], samples.hub().sign(digest)]))


def _verified(data: bytes) -> None:
    found = envelope.verify(envelope.parse(data), samples.hub().public)
    again = envelope.sign(
        samples.hub(),
        kind=found.kind,
        community=found.community,
        counter=found.counter,
        time=found.time,
        body=found.body,
    )
    if again != data:
        raise FindingError("an envelope was read that would be written otherwise")


def _body(model: type[Body]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        found = model.decode(data)
        if model.decode(found.encode()) != found:
            raise FindingError(f"a {model.__name__} does not come back as it was read")
        if isinstance(found, Offer):
            _ = found.plan.chunk_count
        if isinstance(found, CharterNotice):
            _charter(found.charter)

    return run


def _charter(found: Charter) -> None:
    """Hold a charter to what everybody relies on who reads one."""
    for name, value in _leaves(found.model_dump()):
        if isinstance(value, float) and not math.isfinite(value):
            raise FindingError(f"a charter has {value} as its {name}")
        if isinstance(value, str) and not value.isprintable():
            raise FindingError(f"a charter's {name} plays with the terminal: {value!a}")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value


def _public_identity(data: bytes) -> None:
    found = PublicIdentity.decode(data)
    found.fingerprint()
    seal(found.seal_key, b"secret", b"info")


def _unseal(data: bytes) -> None:
    unseal(samples.hub(), data, b"info")


def _stream(data: bytes) -> None:
    """Seal chunks with any index and end, and open them as a stream: only the right order may open."""
    match canonical.decode(data, max_bytes=4096):
        case [int(max_bytes), list(parts)] if 0 <= max_bytes <= 1 << 20:
            pass
        case _:
            return
    chunks: list[bytes] = []
    right = len(parts) > 0
    plain: list[bytes] = []
    for place, part in enumerate(parts):
        match part:
            case bytes(raw):
                chunks.append(raw)
                right = False
            case [int(index), bool(final), bytes(content)] if 0 <= index < 2**32:
                nonce = bytes(7) + index.to_bytes(4, "big") + bytes([final])
                chunks.append(ChaCha20Poly1305(KEY).encrypt(nonce, content, None))
                plain.append(content)
                right = right and index == place and final == (place == len(parts) - 1)
            case _:
                return
    opened = open_stream(chunks, KEY, max_bytes)
    if not right or bytes(opened) != b"".join(plain):
        raise FindingError("a stream opened that was not sealed so")


def _stream_seeds() -> Iterator[bytes]:
    for contents in ([b""], [b"one"], [b"one", b"two", b"three"]):
        parts = [[index, index == len(contents) - 1, content] for index, content in enumerate(contents)]
        yield canonical.encode([100, parts])
    yield canonical.encode([100, [[0, False, b"cut"]]])
    yield canonical.encode([100, [[1, False, b"swapped"], [0, True, b"swapped"]]])
    yield canonical.encode([100, [b"not sealed at all"]])


@cache
def scratch() -> Path:
    """Give a folder for files, in memory where there is such a place; it is gone when the process ends."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="bramble-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _transfer(data: bytes) -> None:
    """Do with a store what a list of steps says: begin, add, put together, start again."""
    steps = canonical.decode(data, max_bytes=8192)
    if not isinstance(steps, list):
        return
    directory = scratch() / "transfers"
    try:
        _take_steps(steps, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _take_steps(steps: list[Any], directory: Path) -> None:
    store = _store(directory)
    transfer = None
    for step in steps:
        with contextlib.suppress(ProtocolError):
            match step:
                case ["again"]:
                    store, transfer = _store(directory), None
                case ["begin", bytes(name), int(total), int(chunk), bytes(sha256)]:
                    plan = TransferPlan(id=name, total_bytes=total, chunk_bytes=chunk, sha256=sha256)
                    transfer = store.begin(plan, check=check_of(KEY, plan))
                case _ if transfer is not None:
                    _take_step(step, transfer, directory)
    announced = sum(found.plan.total_bytes for found in store.stored())
    if announced > 2 * MAX_PLAIN:
        raise FindingError(f"transfers of {announced} bytes are kept")


def _take_step(step: Any, transfer: IncomingTransfer, directory: Path) -> None:
    match step:
        case ["add", int(index), bytes(content)]:
            transfer.add(index, content)
        case ["damage", int(index), bytes(content)]:
            path = directory / transfer.plan.hex_id / str(index)
            if path.is_file():
                path.write_bytes(content[:MAX_PLAIN])
        case ["whole"]:
            if hashlib.sha256(transfer.assemble()).digest() != transfer.plan.sha256:
                raise FindingError("a transfer gave something else than was announced")


def _store(directory: Path) -> TransferStore:
    return TransferStore(directory, max_bytes=MAX_PLAIN, max_total_bytes=2 * MAX_PLAIN, durable=False)


def _plan(data: bytes) -> None:
    """Read what is kept beside chunks; bounded before anybody counts them."""
    found = TransferPlan.decode(data)
    if found.encode() != data or not 1 <= found.chunk_count <= MAX_CHUNKS:
        raise FindingError(f"{found} came of {data!r}")


def _transfer_seeds() -> Iterator[bytes]:
    chunks = seal_stream(bytes(range(200)), KEY, 64)
    whole = b"".join(chunks)
    begin = ["begin", b"t" * 16, len(whole), 80, hashlib.sha256(whole).digest()]
    adds = [["add", index, chunk] for index, chunk in enumerate(chunks)]
    yield canonical.encode([begin, *adds, ["whole"]])
    yield canonical.encode([begin, *adds[::-1], ["again"], begin, ["whole"]])
    yield canonical.encode([begin, *adds[1:], ["whole"]])
    yield canonical.encode([begin, *adds, ["damage", 1, b"x" * 80], ["whole"], adds[1], ["whole"]])
    yield canonical.encode([["begin", b"u" * 16, 2**40, 90_112, bytes(32)]])
    yield canonical.encode([["begin", bytes([n]) * 16, 1500, 1500, bytes(32)] for n in range(5)])


def _invite(data: bytes) -> None:
    """Take the input as what an invite carries, with a checksum that fits; and as a line where it begins as one."""
    text = data.decode(errors="replace")
    line = text if text.startswith(PREFIX) else line_of(data)
    found = parse_invite(line)
    time.strftime("%Y-%m-%d %H:%M", time.localtime(found.expires))  # as an owner is shown it
    with contextlib.suppress(SettingsError):
        parse_brokers(found.broker)
    without_credentials(found.broker)
    if parse_invite(found.encode()) != found:
        raise FindingError("an invite does not come back as it was read")
    _ = topics.Topics(found.community.hex()).join(found.invite.hex(), samples.device().id)


def line_of(body: bytes, checksum: bytes | None = None) -> str:
    """Give the line of an invite that carries these bytes, with a checksum that fits if none is given."""
    checked = body + (hashlib.sha256(body).digest()[:4] if checksum is None else checksum)
    return PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")


def carried_by(line: str) -> bytes:
    """Give what a good invite carries, without its checksum."""
    encoded = line.removeprefix(PREFIX)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[:-4]


def _invite_seeds() -> Iterator[bytes]:
    line = samples.invite().encode()
    yield line.encode()
    yield carried_by(line)


def _topic(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    topics.is_filter(text)
    topics.matches(text, text)
    found = topics.parse(text)
    if not topics.is_topic(text) or not topics.matches(f"bramble/{found.community}/#", text):
        raise FindingError(f"{text!a} is a topic here and none to a broker")


def _topic_seeds() -> Iterator[bytes]:
    there = topics.Topics(samples.COMMUNITY.hex())
    who, name = samples.device().id, samples.INVITE_ID.hex()
    for text in (there.hub("round"), there.to(who, "receipt"), there.from_(who, "chunk"), there.life(who)):
        yield text.encode()
    for text in (there.join(name, who), there.joined(name, who), there.all_from(), there.all_to(who)):
        yield text.encode()


def _broker(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    without_credentials(text)
    for found in parse_brokers(text):
        _ = found.is_loopback, found.transport
        found.shown.encode()
        with contextlib.suppress(PlaintextRefusedError):
            found.require_privacy(allow_plaintext=False)
        if not 1 <= found.port <= 65_535 or not found.host:
            raise FindingError(f"nobody can connect to {found}")


def _replay_window(data: bytes) -> None:
    window = ReplayWindow.from_bytes(data[:136])
    if window.to_bytes() != data[:136]:
        raise FindingError("a replay window does not come back as it was read")
    for counter in data[136:]:
        window.accept(counter)
        if window.check(counter) == "new":
            raise FindingError("a counter is new twice")


def _replay_seeds() -> Iterator[bytes]:
    window = ReplayWindow()
    yield window.to_bytes() + b"\0\1\2\2\1"
    for counter in (0, 3, 7):
        window.accept(counter)
    yield window.to_bytes() + b"\7\3\4"


def _broker_seeds() -> Iterator[bytes]:
    for url in (
        "mqtt://localhost",
        "mqtts://user:p%2Cw@broker.example:8883",
        "wss://[2001:db8::1]:443/mqtt?key=1",
        "ws://127.0.0.1/mqtt, mqtt://[::1]:1883 mqtts://a.localhost",
    ):
        yield url.encode()


def _seeds_of_bodies() -> Iterator[bytes]:
    for kind, body in samples.bodies().items():
        yield samples.envelope(kind, body.encode())


def targets() -> Iterator[Target]:
    """Give the targets of this file."""
    refused = (ProtocolError,)  # anything else would take down the hub or the device that reads it
    yield Target(
        name="canonical",
        run=_canonical,
        seeds=lambda: map(body, samples.bodies().values()),
        refusals=refused,
        form="cbor",
    )
    yield Target(name="envelope", run=_envelope, seeds=_seeds_of_bodies, refusals=refused, form="cbor")
    for kind, model in KINDS.items():
        yield Target(
            name=f"body-{kind}",
            run=_body(model),
            seeds=lambda kind=kind: [samples.bodies()[kind].encode()],  # type: ignore[misc]
            refusals=refused,
            form="cbor",
        )
    yield Target(
        name="public-identity",
        run=_public_identity,
        seeds=lambda: [samples.hub().public.encode(), samples.device().public.encode()],
        refusals=refused,
        form="cbor",
    )
    yield Target(
        name="sealed-value",
        run=_unseal,
        seeds=lambda: [bytes(1200)],  # the corpus has a good one, too: one sealed differs from time to time
        refusals=refused,
    )
    yield Target(name="sealed-stream", run=_stream, seeds=_stream_seeds, refusals=refused, form="cbor")
    yield Target(name="transfer", run=_transfer, seeds=_transfer_seeds, refusals=refused, max_bytes=8192, form="cbor")
    yield Target(
        name="transfer-plan",
        run=_plan,
        seeds=lambda: [TransferPlan.of(bytes(200), id=b"t" * 16, chunk_bytes=80).encode()],
        refusals=refused,
        max_bytes=64,
    )
    yield Target(name="invite", run=_invite, seeds=_invite_seeds, form="cbor", refusals=(InviteError, SettingsError))
    yield Target(name="topic", run=_topic, seeds=_topic_seeds, refusals=refused, max_bytes=512, form="text")
    yield Target(name="broker-url", run=_broker, seeds=_broker_seeds, refusals=(SettingsError,), form="text")
    yield Target(
        name="replay-window", run=_replay_window, seeds=_replay_seeds, refusals=(CorruptStateError,), max_bytes=256
    )


def body(found: Body) -> bytes:
    """Give a body's bytes."""
    return found.encode()
