"""The routes: what can be asked over HTTP, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.errors import AdapterError, BrambleError
from agent.serving.asking import Ask, read_chat, read_completion
from agent.serving.catalogue import Catalogue
from agent.serving.engine import Ended, Engine, Failed, Heard, Job, Piece
from agent.serving.guard import Guard
from agent.serving.refusals import RequestRefusedError, unavailable
from agent.serving.replies import LAST_EVENT, Frame, event, events, model_card

MAX_BODY = 1 << 20
"""Bytes of a request's body; contexts hold far less."""


def build_app(*, engine: Engine, catalogue: Catalogue, host: str, key: str | None) -> ASGIApp:
    """Put the application together.

    Args:
        engine: answers; open for as long as the application is used.
        catalogue: what can be asked for.
        host: what the server is bound to.
        key: that every request must bring; None where none is asked for.
    """
    rooms = _Rooms(engine, catalogue)
    routes = [
        Route("/v1/models", rooms.models),
        Route("/v1/models/{name:path}", rooms.model),
        Route("/v1/chat/completions", rooms.chat, methods=["POST"]),
        Route("/v1/completions", rooms.completion, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
        BrambleError: _explain,
        HTTPException: _explain_http,
        Exception: _explain_bug,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host=host, key=key)


class _Rooms:
    """The endpoints."""

    def __init__(self, engine: Engine, catalogue: Catalogue) -> None:
        self._engine = engine
        self._catalogue = catalogue

    async def models(self, _request: Request) -> Response:
        """List what can be asked for."""
        found = await asyncio.to_thread(self._catalogue.models)
        return JSONResponse({"object": "list", "data": [model_card(model) for model in found]})

    async def model(self, request: Request) -> Response:
        """Tell of one model."""
        name = request.path_params["name"]
        return JSONResponse(model_card(await asyncio.to_thread(self._catalogue.find, name)))

    async def chat(self, request: Request) -> Response:
        """Give the next turn of a conversation."""
        return await self._answer(read_chat(await _body(request)), chat=True)

    async def completion(self, request: Request) -> Response:
        """Go on from a text."""
        return await self._answer(read_completion(await _body(request)), chat=False)

    async def _answer(self, ask: Ask, *, chat: bool) -> Response:
        model = await asyncio.to_thread(self._catalogue.find, ask.model)
        tokens = await asyncio.to_thread(self._engine.tokens, ask.prompt)
        heard: asyncio.Queue[Heard] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(news: Heard) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and whoever listened with it
                loop.call_soon_threadsafe(heard.put_nowait, news)

        job = Job(
            prompt=tokens,
            adapters=model.adapters,
            max_tokens=ask.max_tokens,
            sampling=ask.sampling,
            stop=ask.stop,
            deliver=deliver,
        )
        frame = Frame(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=model.id,
            fingerprint=model.fingerprint,
            chat=chat,
            include_usage=ask.include_usage,
        )
        self._engine.submit(job)
        return _Reply(job=job, heard=heard, frame=frame, stream=ask.stream)


class _Reply(Response):
    """An answer that is given up as soon as whoever asked for it has gone.

    Args:
        job: that computes it.
        heard: what the engine says of it.
        frame: of the JSON.
        stream: whether to send it piece by piece.
    """

    def __init__(self, *, job: Job, heard: asyncio.Queue[Heard], frame: Frame, stream: bool) -> None:
        super().__init__()
        self._job = job
        self._heard = heard
        self._frame = frame
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        telling = asyncio.ensure_future(self._tell(scope, receive, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({telling, gone}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            self._job.cancel()
            telling.cancel()
            gone.cancel()
            await asyncio.gather(telling, gone, return_exceptions=True)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; errors before the first word are responses with a status of their own."""
        first = await self._heard.get()
        if isinstance(first, Failed):
            response = _refusal(first.error)
        elif self._stream:
            await self._tell_pieces(first, send)
            return
        else:
            response = await self._whole(first)
        await response(scope, receive, send)

    async def _whole(self, news: Heard) -> Response:
        said: list[str] = []
        while True:
            if isinstance(news, Piece):
                said.append(news.text)
            elif isinstance(news, Ended):
                return JSONResponse(self._frame.whole("".join(said), news.finish, news.usage))
            else:
                return _refusal(news.error)
            news = await self._heard.get()

    async def _tell_pieces(self, news: Heard, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(_part(events(self._frame.opening())))
        while isinstance(news, Piece):
            await send(_part(event(self._frame.piece(news.text))))
            news = await self._heard.get()
        if isinstance(news, Ended):
            await send(_part(events(self._frame.closing(news.finish, news.usage)) + LAST_EVENT))
        else:
            await send(_part(event(_as_refused(news.error).as_json())))
        await send(_part(b"", more=False))


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """Read a JSON body, and no more of it than is allowed.

    Raises:
        RequestRefusedError: it says that it is something else, or is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefusedError(
            f"the body is {kind[:80] or 'of no stated type'}, not application/json",
            advice="Send the header `Content-Type: application/json`.",
            status=415,
            reason="unsupported_media_type",
        )
    length = request.headers.get("content-length", "0")
    body = bytearray()
    if not (length.isascii() and length.isdigit() and int(length) > MAX_BODY):
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                break
        else:
            return bytes(body)
    raise RequestRefusedError(
        f"the request is larger than {MAX_BODY:,} bytes",
        advice="Shorten it: no model here has a context as long as that.",
        status=413,
        reason="request_too_large",
    )


def _as_refused(error: BrambleError) -> RequestRefusedError:
    """Give any error the shape of OpenAI's."""
    if isinstance(error, RequestRefusedError):
        return error
    if isinstance(error, AdapterError):  # it was there when the catalogue looked
        return unavailable(error.message, advice=error.advice, reason="model_not_available", seconds=1)
    return RequestRefusedError(error.message, advice=error.advice, status=500, reason=error.code)


def _refusal(error: BrambleError) -> Response:
    refused = _as_refused(error)
    return JSONResponse(refused.as_json(), refused.status, headers=refused.headers)


async def _explain(_request: Request, error: BrambleError) -> Response:
    return _refusal(error)


async def _explain_http(request: Request, error: HTTPException) -> Response:
    """Say what is offered instead, where the path or the method is another one."""
    refused = RequestRefusedError(
        f"{request.method} {request.scope['path'][:80]} is not offered here",
        advice="There are GET /v1/models, POST /v1/chat/completions and POST /v1/completions.",
        status=error.status_code,
        reason="unknown_url" if error.status_code == 404 else None,
        headers=error.headers,
    )
    return _refusal(refused)


async def _explain_bug(_request: Request, error: Exception) -> Response:
    return _refusal(
        RequestRefusedError(
            f"the server failed: {type(error).__name__}",
            advice="Ask again; report it if it comes back.",
            status=500,
            reason="internal_error",
        )
    )
