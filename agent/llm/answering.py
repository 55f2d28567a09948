"""One answer in the making, a pass of the model at a time, so that several answers can take turns on one thread."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

import llama_cpp

from agent.llm.chat import StopFilter
from agent.llm.tokenizer import Vocabulary

Finish: TypeAlias = Literal["stop", "length"]
"""Why an answer ended: the model or a stop text said so, or there was no room for more tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the likeliest token always.
        top_p: sample from the likeliest tokens that hold this much probability (Holtzman et al. 2020).
        seed: of the sampler; its low 32 bits count.
    """

    temperature: float = 0.0
    top_p: float = 0.95
    seed: int = 0


class Context(Protocol):
    """What an answer is computed with: :class:`agent.llm.runtime.Runtime`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the base."""

    def recall(self, prompt: Sequence[int]) -> int:
        """Forget everything but the beginning of a prompt that was computed before; say how long that is."""

    def read(self, prompt: Sequence[int], position: int) -> int:
        """Compute the next part of a prompt from a position on; say where it ended."""

    def advance(self, token: int, position: int) -> None:
        """Compute one more token at a position."""

    def sample(self, sampler: Any) -> int:
        """Choose the next token after what was computed last."""


class Answer:
    """An answer in the making. Closes itself when it has ended; close it to abandon it. One a context at a time.

    Args:
        context: to compute with; its earlier answer must be over.
        prompt: tokens to go on from, at least one.
        limit: most tokens to add.
        sampling: how to choose them.
        stop: texts before which the answer ends.

    Attributes:
        prompt_tokens: how many tokens the prompt has.
        reused_tokens: how many of them were computed for an earlier prompt; known after the first step.
        tokens: how many tokens were added so far, the mark that ends an answer not counted.
        finish: why it ended; None while it goes on.
    """

    def __init__(
        self, *, context: Context, prompt: Sequence[int], limit: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> None:
        self._context = context
        self._prompt = list(prompt)
        self._limit = limit
        self._position: int | None = None
        self._pending: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = StopFilter(stop)
        self._sampling = sampling
        self._sampler: Any = None
        self._over = False
        self.prompt_tokens = len(self._prompt)
        self.reused_tokens = 0
        self.tokens = 0
        self.finish: Finish | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the sampler. Harmless when repeated."""
        self._over = True
        if self._sampler is not None:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None

    def step(self) -> str:
        """Run the model once, over a part of the prompt or one token; give the text that is certain by now.

        Raises:
            ModelError: llama.cpp stopped.
            RuntimeError: the answer is over.
        """
        if self._over:
            raise RuntimeError("this answer is over")
        if self._position is None:
            self._sampler = _sampler(self._sampling)
            self._position = self.reused_tokens = self._context.recall(self._prompt)
        if self._pending is None:
            self._position = self._context.read(self._prompt, self._position)
            if self._position < len(self._prompt):
                return ""
        else:
            self._context.advance(self._pending, self._position)
            self._position += 1
        return self._take(self._context.sample(self._sampler))

    def _take(self, token: int) -> str:
        """Count a token in, and give the text that it makes certain."""
        if self._context.vocabulary.ends_generation(token):
            return self._end("stop")
        self.tokens += 1
        self._pending = token
        text = self._held.feed(self._decoder.decode(self._context.vocabulary.piece(token)))
        if self._held.stopped or self.tokens >= self._limit:
            return text + self._end("length")
        return text

    def _end(self, why: Finish) -> str:
        """Give what was held back, and close."""
        rest = self._held.feed(self._decoder.decode(b"", final=True)) + self._held.finish()
        self.finish = "stop" if self._held.stopped else why
        self.close()
        return rest


def _sampler(sampling: Sampling) -> Any:
    """Build a sampler chain: greedy, or nucleus sampling at a temperature."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(sampling.seed & 0xFFFF_FFFF))
    return chain
