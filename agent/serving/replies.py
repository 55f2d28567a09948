"""Answers as OpenAI's clients expect them, whole or as chunks of a stream. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agent.llm.answering import Finish
from agent.serving.catalogue import ServedModel


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, in tokens; ``reused`` of the prompt's were computed for an earlier one."""

    prompt: int
    reused: int
    completion: int

    def as_json(self) -> dict[str, object]:
        """Give OpenAI's ``usage``."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        }


@dataclass(frozen=True, slots=True)
class Frame:
    """What all parts of one reply have in common.

    Attributes:
        id: of the reply.
        created: Unix time, seconds.
        model: its id.
        fingerprint: of the base and the adapters that answer: seeds repeat answers while it stays the same.
        chat: whether it is a turn of a conversation, or a text that goes on.
        include_usage: whether the chunks of a stream have counts.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    chat: bool
    include_usage: bool = False

    def whole(self, text: str, finish: Finish, usage: Usage) -> dict[str, object]:
        """Give a reply in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        said: dict[str, Any] = {"message": message} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage.as_json()}

    def opening(self) -> list[dict[str, object]]:
        """Give the chunks that begin a stream."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)] if self.chat else []

    def piece(self, text: str) -> dict[str, object]:
        """Give a chunk of text."""
        return self._chunk({"delta": {"content": text}} if self.chat else {"text": text}, None)

    def closing(self, finish: Finish, usage: Usage) -> list[dict[str, object]]:
        """Give the chunks that end a stream."""
        last = self._chunk({"delta": {}} if self.chat else {"text": ""}, finish)
        if not self.include_usage:
            return [last]
        return [last, {**self._head(self._chunk_kind), "choices": [], "usage": usage.as_json()}]

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, said: dict[str, Any], finish: Finish | None) -> dict[str, object]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        usage: dict[str, object] = {"usage": None} if self.include_usage else {}
        return {**self._head(self._chunk_kind), "choices": [choice], **usage}

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def model_card(model: ServedModel) -> dict[str, object]:
    """Give one entry of ``GET /v1/models``."""
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": "bramble"}


def event(body: object) -> bytes:
    """Give one server-sent event (WHATWG HTML, section 9.2)."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def events(bodies: Iterable[object]) -> bytes:
    """Give several, to be sent at once."""
    return b"".join(event(body) for body in bodies)


LAST_EVENT = b"data: [DONE]\n\n"
