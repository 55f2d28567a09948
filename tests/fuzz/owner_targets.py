"""What an owner's own machine reads: settings, profiles, requests to the local API, and text of any kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from agent.data.decoding import NotTextError
from agent.data.jsonl import JsonlSource
from agent.data.redaction import find_private, redact
from agent.data.sources import FileSource, Source
from agent.device.profile_files import read_profile
from agent.errors import DataError, SettingsError
from agent.llm.answering import Sampling
from agent.serving.app import build_app
from agent.serving.asking import Ask, read_chat, read_completion
from agent.serving.catalogue import Catalogue
from agent.serving.engine import Ended, Job, Piece, Usage
from agent.serving.refusals import RequestRefusedError
from agent.settings import load_settings
from tests.fuzz.target import CORPUS, FindingError, Target
from tests.fuzz.wire_targets import scratch

_PROFILES = Path(__file__).parents[2] / "firmware_profiles"
_TEXT_BYTES = 32_768


def _settings(data: bytes) -> None:
    path = scratch() / "settings.toml"
    path.write_bytes(data)
    found = load_settings(path)
    for name, value in found.model_dump().items():
        if isinstance(value, float) and not 0 < value < 1e9:
            raise FindingError(f"nobody can wait for {name} = {value}")
        if isinstance(value, str) and not value.isprintable():
            raise FindingError(f"{name} plays with the terminal")


def _profile(data: bytes) -> None:
    path = scratch() / "generic.toml"
    path.write_bytes(data)
    read_profile(path)


def _asks(read: Callable[[bytes], Ask]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        found = read(data)
        Sampling(found.sampling.temperature, found.sampling.top_p, found.sampling.seed & 0xFFFF_FFFF)
        found.model.encode()
        for text in found.stop:
            text.encode()

    return run


class _Engine:
    """Stands where the model is, and says one word: what is tested comes before it."""

    def tokens(self, prompt: object) -> list[int]:
        """Give any token."""
        return [len(str(prompt)) % 256]

    def submit(self, job: Job) -> None:
        """Answer at once."""
        job.deliver(Piece("word"))
        job.deliver(Ended("stop", Usage(prompt=1, reused=0, completion=1)))


@cache
def _app() -> tuple[ASGIApp, asyncio.AbstractEventLoop]:
    base = CORPUS / "base-gguf" / "llama"
    catalogue = Catalogue(base=base, read=lambda: {"seedling": []})
    return build_app(engine=_Engine(), catalogue=catalogue, host="127.0.0.1", key="key"), asyncio.new_event_loop()  # type: ignore[arg-type]


def _request(data: bytes) -> None:
    """Give the server a request: a line ``METHOD path``, header lines, an empty line, and the body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, path = first.partition(b" ")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    address, _, query = path.decode("latin-1").partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "path": address,
        "raw_path": path,
        "query_string": query.encode("latin-1"),
        "headers": headers,
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    app, loop = _app()
    sent = loop.run_until_complete(_answer(app, scope, body))
    status = sent[0]["status"] if sent else None
    if status is None or (status >= 500 and status != 503):
        raise FindingError(f"the server said {status}: {sent[1:2]!r}")


async def _answer(app: ASGIApp, scope: dict[str, Any], body: bytes) -> list[Message]:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []
    finished = asyncio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await finished.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            finished.set()

    await app(scope, receive, send)
    return sent


def _requests() -> Iterator[bytes]:
    head = b"host: 127.0.0.1:8080\nauthorization: Bearer key"
    for path in (b"/v1/models", b"/v1/models/seedling", b"/v1/nothing?x=1"):
        yield b"GET " + path + b"\n" + head + b"\n\n"
    for path, bodies in ((b"/v1/chat/completions", _chats()), (b"/v1/completions", _completions())):
        for body in bodies:
            yield b"POST " + path + b"\n" + head + b"\ncontent-type: application/json\n\n" + body


def _chats() -> list[bytes]:
    full: dict[str, Any] = {
        "model": "seedling",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "go"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["\n", "."],
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 9,
        "n": 1,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "user": "me",
        "tools": [],
    }
    return [
        b'{"model":"seedling","messages":[{"role":"user","content":"hello"}],"max_tokens":5,"stream":true}',
        json.dumps(full).encode(),
        b'{"model":"seedling","messages":[],"n":[[[[2]]]]}',
    ]


def _completions() -> list[bytes]:
    return [
        b'{"model":"seedling","prompt":"once upon"}',
        b'{"model":"seedling","prompt":["once"],"stop":"end","echo":false}',
        b'{"model":"seedling","prompt":[1,2,3],"seed":-1,"best_of":1}',
    ]


def _read(source: Source, name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for found in source.read(Path(name), data):
            text = getattr(found, "text", None)
            if text is not None and (not text.strip() or len(text) > 2 * len(data) + 2):
                raise FindingError(f"{len(text)} characters came out of {len(data)} bytes")

    return run


def _redaction(data: bytes) -> None:
    text = data.decode(errors="replace")
    redact(text, find_private(text))


def _texts() -> list[bytes]:
    return [
        b"# Bees\n\nThey like *brambles*.  \n\n```\ncode   \n```\r\n",
        "\ufeffÜber Bienen\u2028und Hummeln".encode(),
        "Bees".encode("utf-16"),
        "caf\xe9".encode("latin-1"),
        b"many blanks" + b" \t" * 40 + b"x",
    ]


def _pages() -> list[bytes]:
    everything = (
        b"<!doctype html><title>B&amp;B</title><style>p{}</style><p class='a' id=b>One<br>two<pre>\n x\n</pre>"
        b"<!-- no --><script>if (a < b) '</p>'</script><svg><g></svg><![CDATA[x]]><?php ?><td>c</td></p> &lt;&#65;"
    )
    return [
        everything,
        b'<ul><li>one<li>two</ul><a href="x>y">link</a><nav>no</nav></svg><br/><textarea><p></textarea>',
    ]


def _private() -> list[bytes]:
    personal = b"write to ann@example.org or call +442079460958, card 4111 1111 1111 1111, IBAN DE89370400440532013000"
    secret = (
        b"password = 'hunter2hunter2'\nexport TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ456789\n"
        b"Authorization: Bearer abcdefabcdefabcdefabcd\n"
        b"-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJB\n-----END RSA PRIVATE KEY-----\n"
    )
    return [personal, secret]


def _records() -> list[bytes]:
    return [
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}\n{"text":"a tale"}\n',
        b'{"prompt":"q","completion":"a","system":"s"}\n{"instruction":"do","input":"this","output":"done"}\n\n{}\n[1]',
        b'{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":[{"type":"text","text":"yes"}]}]}',
    ]


def targets() -> Iterator[Target]:
    """Give the targets of this file."""
    bad_text = (NotTextError, DataError)
    settings = [
        b'nickname = "pi"\nthreads = 2\nrank = 4\ncompute = "float32"\nmemory_mb = 900\nholdout_fraction = 0.2\n',
        b"filter_secrets = false\nmax_heldout_windows = 8\ncheckpoint_seconds = 5.5\nresend_seconds = 1e1\n",
        b"[training]\nthreads = [1, 2, {a = 'b'}]\nwhen = 2026-01-01T00:00:00Z\n",
    ]
    yield Target(name="settings", run=_settings, seeds=lambda: settings, refusals=(SettingsError,), form="text")
    yield Target(
        name="profile",
        run=_profile,
        seeds=lambda: [path.read_bytes() for path in sorted(_PROFILES.glob("*.toml"))],
        refusals=(SettingsError,),
        form="text",
    )
    refused = (RequestRefusedError,)
    yield Target(name="api-chat", run=_asks(read_chat), seeds=_chats, refusals=refused, form="text")
    yield Target(name="api-completion", run=_asks(read_completion), seeds=_completions, refusals=refused, form="text")
    yield Target(name="api-request", run=_request, seeds=_requests, refusals=(), form="text")
    sources: dict[str, tuple[Source, str, Callable[[], list[bytes]]]] = {
        "text": (FileSource(), "notes.md", _texts),
        "html": (FileSource(), "page.html", _pages),
        "jsonl": (JsonlSource(), "chats.jsonl", _records),
    }
    for name, (source, file, seeds) in sources.items():
        yield Target(
            name=f"source-{name}",
            run=_read(source, file),
            seeds=seeds,
            refusals=bad_text,
            form="text",
            max_bytes=_TEXT_BYTES,
        )
    yield Target(name="redaction", run=_redaction, seeds=_private, refusals=(), form="text", max_bytes=_TEXT_BYTES)
