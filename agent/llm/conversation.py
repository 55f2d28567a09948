"""A conversation with one base under changing adapters, swapped without reloading."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from agent.llm.chat import ChatMessage
from agent.llm.gguf_file import open_gguf
from agent.llm.runtime import AdapterHandle, Runtime

MAX_CONTEXT = 4096


class Conversation:
    """Question and answer, with the base's chat template. A context manager.

    Args:
        base: the GGUF.
        adapters: GGUF adapters to put on it, by the name of the model that this makes.
        max_tokens: of one answer.
        temperature: 0 for the likeliest token always.
        seed: of the sampler; none for another each time.
        threads: to compute on; none for all.
    """

    def __init__(
        self,
        *,
        base: Path,
        adapters: Mapping[str, Sequence[Path]],
        max_tokens: int = 200,
        temperature: float = 0.7,
        seed: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._base = base
        self._paths = adapters
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed if seed is not None else secrets.randbits(32)
        self._threads = threads
        self._messages: list[ChatMessage] = []
        self._handles: dict[Path, AdapterHandle] = {}

    def __enter__(self) -> Self:
        context = min(open_gguf(self._base).config.context_length, MAX_CONTEXT)
        self._runtime = Runtime(base_path=self._base, n_ctx=context, n_threads=self._threads).__enter__()
        try:
            for path in {path for paths in self._paths.values() for path in paths}:
                self._handles[path] = self._runtime.load_adapter(path)
        except BaseException:
            self._runtime.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._runtime.close()

    def swap(self, name: str) -> None:
        """Go on as another model."""
        self._runtime.use([(self._handles[path], 1.0) for path in self._paths[name]])

    def answer(self, question: str) -> Iterator[str]:
        """Answer, piece by piece; what was said before is remembered while it fits the context."""
        self._messages.append(ChatMessage(role="user", content=question))
        while len(self._messages) > 1 and len(self._runtime.render_chat(self._messages)) > self._room():
            del self._messages[:2]
        said: list[str] = []
        for piece in self._generate(self._messages):
            said.append(piece)
            yield piece
        self._messages.append(ChatMessage(role="assistant", content="".join(said)))

    def complete(self, text: str) -> Iterator[str]:
        """Go on from a text, without the chat template."""
        return self._generate(self._runtime.tokenize(text)[-self._room() :])

    def _room(self) -> int:
        return max(1, self._runtime.n_ctx - self._max_tokens)

    def _generate(self, prompt: Sequence[int] | Sequence[ChatMessage]) -> Iterator[str]:
        return self._runtime.generate(
            prompt, max_tokens=self._max_tokens, temperature=self._temperature, seed=self._seed
        )
