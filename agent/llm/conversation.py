"""A conversation with one base under changing adapters, swapped without reloading."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.llm.answering import Sampling
from agent.llm.chat import ChatMessage
from agent.llm.gguf_file import open_gguf
from agent.llm.runtime import AdapterHandle, Runtime

MAX_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """How an answer went.

    Attributes:
        prompt_tokens: length of the conversation before it.
        reused_tokens: how many of these were computed for an earlier answer.
        tokens: length of the answer.
        first_seconds: until its first token.
        seconds: until its last one.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    first_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the answer after its first token; 0 for an answer of one."""
        return (self.tokens - 1) / max(1e-9, self.seconds - self.first_seconds) if self.tokens > 1 else 0.0


class Conversation:
    """Question and answer, with the base's chat template. A context manager.

    Args:
        base: the GGUF.
        adapters: GGUF adapters to put on it, by the name of the model that this makes.
        max_tokens: of one answer.
        temperature: 0 for the likeliest token always.
        seed: of the sampler; none for another each time.
        threads: to compute on; none for all.
        context: tokens that are held; never more than the base was trained to read.
        batch: tokens that one pass of the model takes.
        gpu_layers: layers on a graphics processor, where llama.cpp was built for one.

    Attributes:
        stats: how the latest answer went; None before the first.
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
        context: int = MAX_CONTEXT,
        batch: int = 512,
        gpu_layers: int = 0,
    ) -> None:
        self._base = base
        self._paths = adapters
        self._max_tokens = max_tokens
        self._sampling = Sampling(temperature=temperature, seed=seed if seed is not None else secrets.randbits(32))
        self._threads = threads
        self._context, self._batch, self._gpu_layers = context, batch, gpu_layers
        self._messages: list[ChatMessage] = []
        self._handles: dict[Path, AdapterHandle] = {}
        self.stats: AnswerStats | None = None

    def __enter__(self) -> Self:
        self._runtime = Runtime(
            base_path=self._base,
            n_ctx=min(open_gguf(self._base).config.context_length, self._context),
            n_threads=self._threads,
            n_batch=self._batch,
            gpu_layers=self._gpu_layers,
            scoring=False,
        ).__enter__()
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

    def forget(self) -> None:
        """Begin a new conversation."""
        self._messages.clear()

    def answer(self, question: str) -> Generator[str, None, None]:
        """Answer, piece by piece; what was said before is remembered while it fits the context.

        An answer that is left off, or interrupted, is remembered as far as it went; a question without any is not.
        """
        self._messages.append(ChatMessage(role="user", content=question))
        while len(self._messages) > 1 and len(self._runtime.render_chat(self._messages)) > self._room():
            del self._messages[:2]
        said: list[str] = []
        try:
            for piece in self._stream(self._runtime.render_chat(self._messages)):
                said.append(piece)
                yield piece
        finally:
            if said:
                self._messages.append(ChatMessage(role="assistant", content="".join(said)))
            else:
                del self._messages[-1:]

    def complete(self, text: str) -> Generator[str, None, None]:
        """Go on from a text, without the chat template."""
        return self._stream(self._runtime.text_prompt(text)[-self._room() :])

    def _room(self) -> int:
        return max(1, self._runtime.n_ctx - self._max_tokens)

    def _stream(self, prompt: Sequence[int]) -> Generator[str, None, None]:
        """Give an answer piece by piece, and keep count."""
        began = time.perf_counter()
        first = 0.0
        with self._runtime.answer(prompt, max_tokens=self._max_tokens, sampling=self._sampling) as answer:
            try:
                while answer.finish is None:
                    text = answer.step()
                    if answer.tokens and not first:
                        first = time.perf_counter() - began
                    if text:
                        yield text
            finally:
                self.stats = AnswerStats(
                    prompt_tokens=answer.prompt_tokens,
                    reused_tokens=answer.reused_tokens,
                    tokens=answer.tokens,
                    first_seconds=first,
                    seconds=time.perf_counter() - began,
                )
