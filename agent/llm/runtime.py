"""A base in llama.cpp with adapters that are swapped without loading it again.

Only llama.cpp's low-level API does this: the high-level ``lora_path`` gives up memory mapping and cannot swap.
"""

from __future__ import annotations

import codecs
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from agent.errors import AdapterError, ModelError, UnsupportedModelError
from agent.llm import llama_library
from agent.llm.chat import ChatMessage, StopFilter, render_chat
from agent.llm.tokenizer import Vocabulary

Windows: TypeAlias = NDArray[np.uint32]
_LOGIT_BYTES = 32 << 20  # what the logits of one batch may take


@dataclass(frozen=True, slots=True, eq=False)
class AdapterHandle:
    """An adapter that one runtime has loaded.

    Attributes:
        path: where it came from.
        pointer: llama.cpp's ``llama_adapter_lora_p``.
    """

    path: Path
    pointer: Any


@dataclass(frozen=True, slots=True)
class WindowLosses:
    """How badly a model predicts each of some windows.

    Attributes:
        nll: float64, shape ``(windows,)``: summed negative log-likelihood in nats.
        targets: int64, shape ``(windows,)``: over how many tokens it was summed.
    """

    nll: NDArray[np.float64]
    targets: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Nats a token over all windows."""
        return float(self.nll.sum() / max(1, int(self.targets.sum())))


@dataclass(frozen=True, slots=True)
class _Sampling:
    """How the next token is chosen; see :meth:`Runtime.generate`."""

    temperature: float
    top_p: float
    seed: int


class Runtime:
    """llama.cpp with one base. Use it as a context manager; not for several threads at once.

    Args:
        base_path: the GGUF, which is memory-mapped.
        n_ctx: most tokens of a prompt and its answer, or of a window.
        n_threads: threads to compute on; None for every core this process may use.
        n_batch: most tokens that one pass of the model takes.

    Raises (on entering):
        UnreadableModelError, UnsupportedModelError: llama.cpp cannot load it.
    """

    def __init__(self, *, base_path: Path, n_ctx: int = 512, n_threads: int | None = None, n_batch: int = 512) -> None:
        self.base_path = base_path
        self.n_ctx = n_ctx
        self.n_threads = n_threads or len(_usable_cores())
        self._n_batch = min(n_batch, n_ctx)
        self._model: Any = None
        self._context: Any = None
        self._vocabulary: Vocabulary | None = None
        self._adapters: list[AdapterHandle] = []

    def __enter__(self) -> Self:
        self._model = llama_library.load_model(self.base_path)
        self._vocabulary = Vocabulary(model=self._model)
        self._n_batch = max(16, min(self._n_batch, _LOGIT_BYTES // (4 * self._vocabulary.n_vocab)))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = self._n_batch
        params.n_outputs_max = params.n_outputs_max_per_seq = self._n_batch
        params.n_threads = params.n_threads_batch = self.n_threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise UnsupportedModelError(
                f"llama.cpp cannot run {self.base_path}: {llama_library.complaints()}",
                advice=f"Free some memory, or ask for a smaller context than {self.n_ctx} tokens.",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; adapters go with it. Harmless when repeated."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = self._vocabulary = None
        self._adapters.clear()

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the base, while the runtime is open."""
        if self._vocabulary is None:
            raise RuntimeError("the runtime is used outside of its with block")
        return self._vocabulary

    def tokenize(self, text: str) -> list[int]:
        """Give the tokens of a text: no marks are added, control tokens spelt in it stay text."""
        return self.vocabulary.encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens."""
        return self.vocabulary.decode(tokens)

    def load_adapter(self, path: Path) -> AdapterHandle:
        """Load a GGUF adapter, without using it yet.

        Raises:
            AdapterError: it is no adapter for this base.
        """
        llama_library.complaints()
        pointer = None
        if path.is_file():
            pointer = llama_cpp.llama_adapter_lora_init(self._open_model(), str(path).encode())
        if not pointer:
            why = llama_library.complaints() if path.is_file() else "there is no such file"
            raise AdapterError(
                f"llama.cpp cannot load the adapter {path} on {self.base_path.name}: {why}",
                advice="Use an adapter.gguf that was trained on this base.",
            )
        handle = AdapterHandle(path, pointer)
        self._adapters.append(handle)
        return handle

    def unload_adapter(self, handle: AdapterHandle) -> None:
        """Stop using every adapter, and let go of this one."""
        if handle in self._adapters:
            self.use([])
            self._adapters.remove(handle)
            llama_cpp.llama_adapter_lora_free(handle.pointer)

    def use(self, adapters: Sequence[tuple[AdapterHandle, float]]) -> None:
        """Compute with exactly these adapters, each at its scale, from now on; none for the base alone."""
        self._open_model()
        for handle, _ in adapters:
            if handle not in self._adapters:
                raise AdapterError(
                    f"the adapter {handle.path} is not loaded here", advice="Load it into this runtime first."
                )
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(*(h.pointer for h, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
        if llama_cpp.llama_set_adapters_lora(self._context, pointers, len(adapters), scales) != 0:
            raise AdapterError(
                f"llama.cpp refused the adapters: {llama_library.complaints()}",
                advice="Use adapters that were trained on this base.",
            )

    def losses(self, windows: Windows, *, masks: NDArray[np.bool_] | None = None) -> WindowLosses:
        """Give the loss of the base with the adapters in use on each window.

        Args:
            windows: uint32 tokens, shape ``(n, length)``; every token but the first is predicted from those before.
            masks: bool, same shape: which tokens count as targets; None for all. The first column counts for nothing.

        Raises:
            ModelError: the windows do not fit the context or the vocabulary.
        """
        self._check_windows(windows)
        nll = np.zeros(len(windows), dtype=np.float64)
        counted = np.ones(windows.shape, dtype=np.bool_) if masks is None else masks
        for index, window in enumerate(windows):
            self._forget()
            for start in range(0, len(window) - 1, self._n_batch):
                end = min(start + self._n_batch, len(window) - 1)
                logits = self._decode(window[start:end], start, all_logits=True)
                chosen = counted[index, start + 1 : end + 1]
                nll[index] += _summed_nll(logits[chosen], window[start + 1 : end + 1][chosen])
        return WindowLosses(nll=nll, targets=counted[:, 1:].sum(axis=1, dtype=np.int64))

    def render_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Give the prompt tokens of a conversation by the base's own template, ready for the assistant's turn."""
        template = llama_cpp.llama_model_chat_template(self._open_model(), None)
        return self.vocabulary.encode(render_chat(messages, template), special=template is not None)

    def generate(
        self,
        prompt: Sequence[int] | Sequence[ChatMessage],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Continue a prompt, giving text as it comes; every piece is whole characters.

        Args:
            prompt: tokens, or the messages of a conversation.
            max_tokens: most tokens to add; fewer where the context is full.
            temperature: 0 for the likeliest token always.
            top_p: sample from the likeliest tokens that hold this much probability (Holtzman et al. 2020).
            seed: of the sampler.
            stop: texts before which the answer ends.

        Raises:
            ModelError: the prompt alone fills the context.
        """
        tokens = [int(t) for t in prompt if not isinstance(t, ChatMessage)]
        messages = [m for m in prompt if isinstance(m, ChatMessage)]
        tokens = self.render_chat(messages) if messages else tokens
        if not tokens:
            tokens = [self.vocabulary.bos_id if self.vocabulary.bos_id is not None else 0]
        room = self.n_ctx - len(tokens)
        if room < 1:
            raise ModelError(
                f"the prompt is {len(tokens)} tokens long and the context holds {self.n_ctx}",
                advice="Shorten the conversation, or begin a new one.",
            )
        return self._stream(tokens, min(max_tokens, room), _Sampling(temperature, top_p, seed), stop)

    def _stream(self, tokens: list[int], limit: int, sampling: _Sampling, stop: Sequence[str]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held = StopFilter(stop)
        sampler = _sampler(sampling)
        try:
            self._forget()
            for start in range(0, len(tokens), self._n_batch):
                self._decode(np.asarray(tokens[start : start + self._n_batch], dtype=np.uint32), start)
            for position in range(len(tokens), len(tokens) + limit):
                token = llama_cpp.llama_sampler_sample(sampler, self._context, -1)
                if self.vocabulary.ends_generation(token):
                    break
                text = held.feed(decoder.decode(self.vocabulary.piece(token)))
                if text:
                    yield text
                if held.stopped:
                    return
                if position + 1 < len(tokens) + limit:
                    self._decode(np.asarray([token], dtype=np.uint32), position)
            rest = held.feed(decoder.decode(b"", final=True)) + held.finish()
            if rest:
                yield rest
        finally:
            llama_cpp.llama_sampler_free(sampler)

    def _open_model(self) -> Any:
        if self._context is None:
            raise RuntimeError("the runtime is used outside of its with block")
        return self._model

    def _forget(self) -> None:
        """Begin with an empty context."""
        self._open_model()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _check_windows(self, windows: Windows) -> None:
        if windows.ndim != 2 or windows.shape[1] < 2 or windows.shape[1] - 1 > self.n_ctx:
            raise ModelError(
                f"windows of shape {windows.shape} do not fit a context of {self.n_ctx} tokens",
                advice="Prepare the text again with a window that is no longer than the context.",
            )
        if windows.size and int(windows.max()) >= self.vocabulary.n_vocab:
            raise ModelError(
                f"token {int(windows.max())} is outside of the {self.vocabulary.n_vocab} of {self.base_path.name}",
                advice="The text was prepared for another base; prepare it again.",
            )

    def _decode(self, tokens: Windows, position: int, *, all_logits: bool = False) -> NDArray[np.float32]:
        """Run tokens from a position on; give their logits, ``(len(tokens) or 1, n_vocab)``, until the next call."""
        count = len(tokens)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                batch.token[index] = int(tokens[index])
                batch.pos[index] = position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = all_logits or index == count - 1
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise ModelError(
                f"llama.cpp stopped with status {status} on {self.base_path.name}: {llama_library.complaints()}",
                advice="Free some memory, or use a smaller context.",
            )
        rows = count if all_logits else 1
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary.n_vocab))


def _usable_cores() -> Sequence[int]:
    """Give the cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else range(os.cpu_count() or 1)


def _summed_nll(logits: NDArray[np.float32], targets: Windows) -> float:
    """Give the summed negative log-softmax of the targets; exponentials are taken after subtracting the maximum."""
    highest = logits.max(axis=1, keepdims=True, initial=-np.inf)
    mass = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets.astype(np.int64)[:, None], axis=1) - highest
    return float((np.log(mass) - chosen[:, 0].astype(np.float64)).sum())


def _sampler(sampling: _Sampling) -> Any:
    """Build a sampler chain: greedy, or nucleus sampling at a temperature."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
        return chain
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(sampling.seed & 0xFFFF_FFFF))
    return chain
