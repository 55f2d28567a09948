"""Requests as they come in: JSON that OpenAI's clients send, checked and turned into what the engine is asked. Pure.

What would change the answer and is not offered is refused by name; what would not (``user``, ``metadata``, ``store``
and the like) is let pass, as other servers of this API do. A field that is null counts as left out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.llm.answering import Sampling
from agent.llm.chat import ChatMessage
from agent.serving.refusals import RequestRefusedError

Prompt: TypeAlias = str | tuple[int, ...] | tuple[ChatMessage, ...]

_COMPLETION_TOKENS = 16
"""What ``/v1/completions`` adds unless told otherwise, as OpenAI documents it."""

_REFUSED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "grammar": ("",),
    "guided_json": (),
    "json_schema": (),
}
"""Fields that would change the answer and are not offered, each with the values that change nothing."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        model: the name that was asked for.
        prompt: a text, tokens, or the messages of a conversation.
        max_tokens: most tokens to add; None for as many as there is room for.
        sampling: how to choose them.
        stop: texts before which the answer ends.
        stream: whether to send it piece by piece.
        include_usage: whether a stream ends with its counts.
    """

    model: str
    prompt: Prompt
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _StreamOptions(_Strict):
    include_usage: bool = False


_Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]


class _Common(_Strict):
    """The fields that both endpoints take."""

    model: Annotated[str, Field(min_length=1)]
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] = []

    def ask(self, prompt: Prompt, max_tokens: int | None) -> Ask:
        """Put it together; without a seed, every answer is another one."""
        return Ask(
            model=self.model,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                seed=secrets.randbits(32) if self.seed is None else self.seed,
            ),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stream=self.stream,
            include_usage=self.stream and self.stream_options.include_usage,
        )


_T = TypeVar("_T", bound=_Common)


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def turn(self) -> ChatMessage:
        """Give it as the chat template knows it: a developer's message is the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=text)


class _Chat(_Common):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class _Completion(_Common):
    prompt: str | Annotated[list[str], Field(max_length=1)] | list[Annotated[int, Field(ge=0)]] = ""


def read_chat(body: bytes) -> Ask:
    """Read the body of ``POST /v1/chat/completions``.

    Raises:
        RequestRefusedError: it is no JSON, lacks something, or asks for what is not offered.
    """
    found = _validate(_Chat, body)
    limits = [limit for limit in (found.max_tokens, found.max_completion_tokens) if limit is not None]
    return found.ask(tuple(message.turn() for message in found.messages), min(limits) if limits else None)


def read_completion(body: bytes) -> Ask:
    """Read the body of ``POST /v1/completions``.

    Raises:
        RequestRefusedError: as :func:`read_chat`.
    """
    found = _validate(_Completion, body)
    prompt: Prompt
    if isinstance(found.prompt, str):
        prompt = found.prompt
    elif all(isinstance(part, str) for part in found.prompt):
        prompt = "".join(str(part) for part in found.prompt)
    else:
        prompt = tuple(int(part) for part in found.prompt)
    return found.ask(prompt, _COMPLETION_TOKENS if found.max_tokens is None else found.max_tokens)


def _validate(kind: type[_T], body: bytes) -> _T:
    fields = _fields(body)
    for name, harmless in _REFUSED.items():
        if name in fields and not any(_same(fields[name], value) for value in harmless):
            raise RequestRefusedError(
                f"'{name}': {json.dumps(fields[name])[:80]} is not offered here",
                advice=f"Leave {name} out: this server gives one plain text, sampled by temperature and top_p.",
                reason="unsupported_parameter",
                parameter=name,
            )
    try:
        return kind.model_validate(fields)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = first["loc"][:1] + tuple(part for part in first["loc"][1:] if isinstance(part, int))
        missing = first["type"] == "missing"
        raise RequestRefusedError(
            f"'{'.'.join(map(str, where))}' is {'missing' if missing else 'not usable: ' + first['msg']}",
            advice="OpenAI's reference of this endpoint says what belongs there; messages and prompts are text only.",
            reason="missing_required_parameter" if missing else "invalid_value",
            parameter=str(where[0]) if where else None,
        ) from cause


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise RequestRefusedError(
            "the body of the request is no JSON", advice="Send one JSON object in UTF-8.", reason="invalid_json"
        ) from cause
    if not isinstance(found, dict):
        raise RequestRefusedError(
            "the body of the request is JSON, and no object", advice="Send one JSON object.", reason="invalid_json"
        )
    return {name: value for name, value in found.items() if value is not None}


def _same(value: object, other: object) -> bool:
    """Compare JSON values; true is not 1 there."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
