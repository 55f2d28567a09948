"""Conversations as text: the base's own template around the messages, and the places where an answer ends."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import llama_cpp

from agent.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def render_chat(messages: Sequence[ChatMessage], template: bytes | None, *, prompt: bool = True) -> str:
    """Give the prompt for the assistant's next turn.

    Args:
        messages: the conversation so far.
        template: the base's template; None for a base without one, which simply continues the text.
        prompt: end with what calls for the assistant's turn; without, end with what was said.

    Raises:
        UnsupportedModelError: llama.cpp does not know this template.
    """
    if template is None:
        return "\n\n".join(message.content for message in messages) + ("\n\n" if prompt else "")
    encoded = [(m.role.encode(), m.content.replace("\0", "").encode("utf-8", "replace")) for m in messages]
    chat = (llama_cpp.llama_chat_message * len(encoded))(*(llama_cpp.llama_chat_message(*pair) for pair in encoded))
    size = 256 + sum(len(role) + 2 * len(content) + 64 for role, content in encoded)
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = llama_cpp.llama_chat_apply_template(template, chat, len(encoded), prompt, buffer, size)
        if length < 0:
            raise UnsupportedModelError(
                "the base's chat template is not one that llama.cpp knows by itself",
                advice="Use a base with a common template, such as ChatML.",
            )
        if length <= size:
            return buffer.raw[:length].decode("utf-8", "replace")
        size = length


class StopFilter:
    """Passes text on until one of some texts appears in it, also where that is cut over several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Give what can be passed on now: not the stop text, nor what may turn out to be its beginning."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        longest = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._give(len(self._held) - longest)

    def finish(self) -> str:
        """Give what was held back, now that nothing more comes."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Say how many of the last characters of ``text`` begin ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
