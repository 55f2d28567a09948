"""A base in llama.cpp with adapters that are swapped without loading it again.

Only llama.cpp's low-level API does this: the high-level ``lora_path`` gives up memory mapping and cannot swap.
"""

from __future__ import annotations

import contextlib
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
from agent.llm.answering import Answer, Sampling
from agent.llm.chat import ChatMessage
from agent.llm.loaded_base import AdapterHandle, LoadedBase
from agent.llm.tokenizer import Vocabulary

__all__ = ["AdapterHandle", "Runtime", "WindowLosses", "Windows"]

Windows: TypeAlias = NDArray[np.uint32]
_LOGIT_BYTES = 32 << 20  # what the logits of one batch may take
_CHUNK = 128
"""Tokens of a prompt that one pass takes. Chunks begin at multiples of this, always: what was computed for one prompt
is then, bit for bit, what would be computed for another one that begins alike, and can be used again."""
_ABORT = llama_cpp.llama_cpp.ggml_abort_callback(lambda _data: True)
_GO_ON = llama_cpp.llama_cpp.ggml_abort_callback()


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


class Runtime:
    """A context of llama.cpp on one base. Use it as a context manager; not for several threads at once.

    Args:
        base_path: the GGUF, which is memory-mapped.
        base: the same, loaded already and shared with other contexts; None to load it for this one alone.
        n_ctx: most tokens of a prompt and its answer, or of a window.
        n_threads: threads to compute on; None for every core this process may use.
        n_batch: most tokens that one pass of the model takes.
        gpu_layers: layers on a graphics processor, of a base of its own; one that is shared has its own number.
        scoring: whether :meth:`losses` is wanted, which takes memory for the logits of a whole batch.

    Raises (on entering):
        UnreadableModelError, UnsupportedModelError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        *,
        base_path: Path,
        base: LoadedBase | None = None,
        n_ctx: int = 512,
        n_threads: int | None = None,
        n_batch: int = 512,
        gpu_layers: int = 0,
        scoring: bool = True,
    ) -> None:
        self.base_path = base_path
        self.n_ctx = n_ctx
        self.n_threads = n_threads or len(_usable_cores())
        self._base = base or LoadedBase(path=base_path, gpu_layers=gpu_layers)
        self._owns_base = base is None
        self._n_batch = min(n_batch, n_ctx)
        self._scoring = scoring
        self._context: Any = None
        self._in_use: list[tuple[AdapterHandle, float]] | None = []
        self._known: list[int] = []

    def __enter__(self) -> Self:
        if self._owns_base:
            self._base.__enter__()
        if self._scoring:
            self._n_batch = max(16, min(self._n_batch, _LOGIT_BYTES // (4 * self.vocabulary.n_vocab)))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = self._n_batch
        params.n_outputs_max = params.n_outputs_max_per_seq = self._n_batch if self._scoring else 1
        params.n_threads = params.n_threads_batch = self.n_threads
        self._context = llama_cpp.llama_init_from_model(self._base.model, params)
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
        """Let go of the context, and of a base of its own; adapters go with that. Harmless when repeated."""
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = None
        self._in_use, self._known = [], []
        if self._owns_base:
            self._base.close()

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the base, while the runtime is open."""
        return self._base.vocabulary

    def tokenize(self, text: str) -> list[int]:
        """Give the tokens of a text: no marks are added, control tokens spelt in it stay text."""
        return self.vocabulary.encode(text)

    def load_adapter(self, path: Path) -> AdapterHandle:
        """Load a GGUF adapter, without using it yet.

        Raises:
            AdapterError: it is no adapter for this base.
        """
        return self._base.load_adapter(path)

    def unload_adapter(self, handle: AdapterHandle) -> None:
        """Stop using every adapter, and let go of this one."""
        if self._base.has_adapter(handle):
            self.use([])
            self._base.unload_adapter(handle)

    def use(self, adapters: Sequence[tuple[AdapterHandle, float]]) -> None:
        """Compute with exactly these adapters, each at its scale, from now on; none for the base alone.

        Takes milliseconds, whatever the base: nothing is loaded, and the first pass after it is as fast as any other.
        """
        self._check_open()
        for handle, _ in adapters:
            if not self._base.has_adapter(handle):
                raise AdapterError(
                    f"the adapter {handle.path} is not loaded here", advice="Load it into this runtime first."
                )
        if list(adapters) == self._in_use:
            return
        self._in_use = None
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(*(h.pointer for h, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
        if llama_cpp.llama_set_adapters_lora(self._context, pointers, len(adapters), scales) != 0:
            raise AdapterError(
                f"llama.cpp refused the adapters: {llama_library.complaints()}",
                advice="Use adapters that were trained on this base.",
            )
        self._in_use = list(adapters)
        self._settle()

    def _settle(self) -> None:
        """Let llama.cpp lay out its buffers for other adapters now: a pass that is called off after its first node."""
        self._forget()
        llama_cpp.llama_set_abort_callback(self._context, _ABORT, None)
        llama_cpp.llama_set_n_threads(self._context, 1, 1)  # on a busy machine others would be waited for
        try:
            with contextlib.suppress(ModelError):
                self._decode(np.zeros(1, dtype=np.uint32), 0)
        finally:
            llama_cpp.llama_set_n_threads(self._context, self.n_threads, self.n_threads)
            llama_cpp.llama_set_abort_callback(self._context, _GO_ON, None)
            self._forget()

    def losses(
        self,
        windows: Windows,
        *,
        masks: NDArray[np.bool_] | None = None,
        segments: NDArray[np.uint16] | None = None,
    ) -> WindowLosses:
        """Give the loss of the base with the adapters in use on each window.

        Args:
            windows: uint32 tokens, shape ``(n, length)``; every token but the first is predicted from those before.
            masks: bool, same shape: which tokens count as targets; None for all. What begins a segment never counts.
            segments: uint16, same shape: the segment that each token belongs to, never falling in a window. A segment
                is predicted as if it were alone, with positions from 0; None for one segment a window.

        Raises:
            ModelError: the windows do not fit the context or the vocabulary.
        """
        self._check_windows(windows)
        counted = np.ones(windows.shape, dtype=np.bool_) if masks is None else masks.copy()
        borders = np.ones(windows.shape, dtype=np.bool_)
        borders[:, 1:] = False if segments is None else segments[:, 1:] != segments[:, :-1]
        counted &= ~borders
        nll = np.zeros(len(windows), dtype=np.float64)
        for index, window in enumerate(windows):
            starts = np.flatnonzero(borders[index]).tolist()
            for start, end in zip(starts, [*starts[1:], len(window)], strict=True):
                nll[index] += self._segment_nll(window[start:end], counted[index, start:end])
        return WindowLosses(nll=nll, targets=counted.sum(axis=1, dtype=np.int64))

    def _segment_nll(self, tokens: Windows, counted: NDArray[np.bool_]) -> float:
        """Give the summed loss of the tokens that count, in nats, of a sequence that begins at position 0."""
        last = int(counted.nonzero()[0].max(initial=0))
        nll = 0.0
        if last:
            self._forget()
        for start in range(0, last, self._n_batch):
            end = min(start + self._n_batch, last)
            chosen = counted[start + 1 : end + 1]
            logits = self._decode(tokens[start:end], start, wanted=chosen)
            nll += _summed_nll(logits, tokens[start + 1 : end + 1][chosen])
        return nll

    def render_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Give the prompt tokens of a conversation by the base's own template, ready for the assistant's turn."""
        return self._base.chat_prompt(messages)

    def text_prompt(self, text: str) -> list[int]:
        """Give the prompt tokens of a text to go on from, begun as the base's tokenizer wants it."""
        return self._base.text_prompt(text)

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
        sampling = Sampling(temperature, top_p, seed)
        prompt_tokens = self.render_chat(messages) if messages else tokens
        return _pieces(self.answer(prompt_tokens, max_tokens=max_tokens, sampling=sampling, stop=stop))

    def answer(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Begin an answer that is computed step by step; the one before is over with that.

        Args:
            prompt: tokens; none for the base's own beginning.
            max_tokens: most tokens to add; None for as many as the context holds, which is the most anyway.
            sampling: how to choose them; the likeliest always if not given.
            stop: texts before which the answer ends.

        Raises:
            ModelError: the prompt alone fills the context.
        """
        self._check_open()
        tokens = list(prompt) or [self.vocabulary.bos_id if self.vocabulary.bos_id is not None else 0]
        room = self.n_ctx - len(tokens)
        if room < 1:
            raise ModelError(
                f"the prompt is {len(tokens)} tokens long and the context holds {self.n_ctx}",
                advice="Shorten the conversation, or begin a new one.",
            )
        limit = room if max_tokens is None else min(max_tokens, room)
        return Answer(context=self, prompt=tokens, limit=limit, sampling=sampling or Sampling(), stop=stop)

    # --- what an answer is computed with -----------------------------------------------------------------------

    def shares(self, prompt: Sequence[int]) -> int:
        """Say how many tokens at the beginning of a prompt need not be computed again, with the adapters in use."""
        same = next((i for i, (a, b) in enumerate(zip(self._known, prompt, strict=False)) if a != b), None)
        alike = min(len(self._known), len(prompt)) if same is None else same
        return min(alike, len(prompt) - 1) // self._chunk * self._chunk  # the last one is needed for its logits

    def recall(self, prompt: Sequence[int]) -> int:
        """Forget everything but the beginning of a prompt that was computed before; say how long that is."""
        self._check_open()
        kept = self.shares(prompt)
        memory = llama_cpp.llama_get_memory(self._context)
        whole = kept > 0 and llama_cpp.llama_memory_seq_pos_min(memory, 0) == 0  # no window has slid over it
        if not (whole and llama_cpp.llama_memory_seq_rm(memory, 0, kept, -1)):
            self._forget()
        self._known = self._known[:kept]
        return len(self._known)

    def read(self, prompt: Sequence[int], position: int) -> int:
        """Compute the next chunk of a prompt from a position on; say where it ended."""
        end = min((position // self._chunk + 1) * self._chunk, len(prompt))
        self._decode(np.asarray(prompt[position:end], dtype=np.uint32), position)
        if end % self._chunk == 0:
            self._known.extend(prompt[position:end])
        return end

    def advance(self, token: int, position: int) -> None:
        """Compute one more token at a position. It is not known afterwards: alone it differs in its last bits."""
        self._decode(np.asarray([token], dtype=np.uint32), position)

    def sample(self, sampler: Any) -> int:
        """Choose the next token after what was computed last."""
        return int(llama_cpp.llama_sampler_sample(sampler, self._context, -1))

    @property
    def _chunk(self) -> int:
        return min(_CHUNK, self._n_batch)

    def _check_open(self) -> None:
        if self._context is None:
            raise RuntimeError("the runtime is used outside of its with block")

    def _forget(self) -> None:
        """Begin with an empty context."""
        self._check_open()
        self._known = []
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

    def _decode(
        self, tokens: Windows, position: int, *, wanted: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Run tokens from a position on; give logits until the next call.

        Args:
            tokens: uint32, shape ``(n,)``, at most a batch.
            position: of the first one.
            wanted: bool, shape ``(n,)``: the tokens after which logits are wanted; None for the last one alone.

        Returns:
            float32, shape ``(wanted, n_vocab)``.
        """
        count = len(tokens)
        if wanted is None:
            wanted = np.arange(count) == count - 1
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                batch.token[index] = int(tokens[index])
                batch.pos[index] = position + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = bool(wanted[index])
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise ModelError(
                f"llama.cpp stopped with status {status} on {self.base_path.name}: {llama_library.complaints()}",
                advice="Free some memory, or use a smaller context.",
            )
        rows = int(wanted.sum())
        if not rows:
            return np.empty((0, self.vocabulary.n_vocab), dtype=np.float32)
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


def _pieces(answer: Answer) -> Iterator[str]:
    """Give the text of an answer as it comes; leaving off closes it."""
    with answer:
        while answer.finish is None:
            text = answer.step()
            if text:
                yield text
