"""One loaded base that answers several requests at once, each with its own adapters.

All of llama.cpp runs on one thread: it goes round the slots and lets each compute one pass, a chunk of a prompt or one
token. That is fair by construction, lets every pass have all cores, and makes an answer independent, bit for bit, of
what else is being answered: a slot is a context of its own on the shared base, and its passes are the same whoever runs
beside it. (Passes of several contexts at the same time would only fight for the cores: OpenMP keeps a team of threads
for each thread that computes, and those spin.) Adapters are loaded and swapped between passes, on the same thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias

from agent.errors import BrambleError, ServingError
from agent.llm.answering import Answer, Finish, Sampling
from agent.llm.chat import ChatMessage
from agent.llm.gguf_file import open_gguf
from agent.llm.loaded_base import AdapterHandle, LoadedBase
from agent.llm.runtime import Runtime
from agent.serving.asking import Prompt
from agent.serving.catalogue import AdapterFile
from agent.serving.loaded_adapters import LoadedAdapters
from agent.serving.refusals import RequestRefusedError, unavailable
from agent.serving.replies import Usage

MAX_CONTEXT = 4096
"""Tokens of a slot's context unless told otherwise: the base's own length, where that is less."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer."""

    finish: Finish
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of an answer that will not be."""

    error: BrambleError


Heard: TypeAlias = Piece | Ended | Failed


@dataclass(eq=False)
class Job:
    """One answer that was asked for.

    Attributes:
        prompt: its tokens.
        adapters: what to put on the base for it.
        max_tokens: most tokens to add; None for as many as there is room for.
        sampling: how to choose them.
        stop: texts before which it ends.
        deliver: called on the engine's thread with each :data:`Heard`; must not block.
        cancelled: whether nobody waits for it any more.
    """

    prompt: Sequence[int]
    adapters: tuple[AdapterFile, ...]
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    deliver: Callable[[Heard], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Give up: the slot is free before its next pass. For any thread; harmless when repeated."""
        self.cancelled = True


@dataclass(eq=False)
class _Slot:
    """A context, and what it is doing."""

    context: Runtime
    adapters: tuple[AdapterFile, ...] = ()
    handles: list[AdapterHandle] = field(default_factory=list)
    job: Job | None = None
    answer: Answer | None = None
    last_used: int = 0


class Engine:
    """A base with slots. A context manager: it is loaded on entering, and its thread is gone on leaving.

    Args:
        base: the GGUF.
        n_ctx: tokens that one slot holds; None for as many as the base knows, at most :data:`MAX_CONTEXT`.
        slots: how many answers are computed at once.
        waiting: how many more may wait for a slot.
        threads: to compute on; None for every core.
        batch: tokens that one pass of the model takes.
        gpu_layers: layers on a graphics processor, where llama.cpp was built for one.

    Raises (on entering):
        ModelError: the base cannot be loaded.
    """

    def __init__(
        self,
        *,
        base: Path,
        n_ctx: int | None = None,
        slots: int = 2,
        waiting: int = 16,
        threads: int | None = None,
        batch: int = 512,
        gpu_layers: int = 0,
    ) -> None:
        self._path = base
        self._batch = batch
        self._n_ctx = n_ctx
        self._waiting_most = waiting
        self._threads = threads
        self._base = LoadedBase(path=base, gpu_layers=gpu_layers)
        self._slots_wanted = slots
        self._slots: list[_Slot] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped: BrambleError | None = None
        self._ending = False
        self._thread: threading.Thread | None = None
        self._turn = 0
        self._loaded = LoadedAdapters(base=self._base, let_go=self._take_off)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        known = open_gguf(self._path).config.context_length
        length = min(known, self._n_ctx or MAX_CONTEXT)
        with contextlib.ExitStack() as opening:
            opening.enter_context(self._base)
            for _ in range(self._slots_wanted):
                context = Runtime(
                    base_path=self._path,
                    base=self._base,
                    n_ctx=length,
                    n_threads=self._threads,
                    n_batch=self._batch,
                    scoring=False,
                )
                self._slots.append(_Slot(opening.enter_context(context)))
            self._open = opening.pop_all()
        self._n_ctx = length
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._slots.clear()
        self._open.close()

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._n_ctx or MAX_CONTEXT

    def tokens(self, prompt: Prompt) -> list[int]:
        """Give the tokens of a prompt. For any thread.

        Raises:
            RequestRefusedError: it leaves no room for an answer, or has tokens that the base does not know.
            UnsupportedModelError: the base's chat template is not one that llama.cpp knows.
        """
        if isinstance(prompt, str):
            tokens = self._base.text_prompt(prompt)
        else:
            tokens = [part for part in prompt if isinstance(part, int)]
            messages = [part for part in prompt if isinstance(part, ChatMessage)]
            tokens = self._base.chat_prompt(messages) if messages else tokens
        if len(tokens) >= self.n_ctx:
            raise RequestRefusedError(
                f"this model's maximum context length is {self.n_ctx} tokens, and the prompt alone has {len(tokens)}",
                advice="Shorten it, or leave out the oldest messages.",
                reason="context_length_exceeded",
                parameter="prompt" if isinstance(prompt, str) else "messages",
            )
        if tokens and max(tokens) >= self._base.vocabulary.n_vocab:
            raise RequestRefusedError(
                f"token {max(tokens)} is outside of the base's {self._base.vocabulary.n_vocab}",
                advice="Send the prompt as text, or use the base's own tokenizer.",
                reason="invalid_value",
                parameter="prompt",
            )
        return tokens

    def submit(self, job: Job) -> None:
        """Let a job be answered when its turn comes. For any thread.

        Raises:
            RequestRefusedError: too many are waiting, or the engine is stopping.
        """
        with self._changed:
            if self._stopped is not None:
                raise self._stopped
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            free = sum(slot.job is None or slot.job.cancelled for slot in self._slots)
            if len(self._waiting) >= self._waiting_most + free:
                raise unavailable(
                    f"{len(self._slots)} answers are being given and {len(self._waiting)} requests wait already",
                    advice="Ask again in a few seconds, or start the server with more --slots or a longer --queue.",
                    reason="queue_full",
                    seconds=2,
                )
            self._waiting.append(job)
            self._changed.notify()

    def refuse_waiting(self) -> None:
        """Take no more jobs, and fail those that have no slot yet; what is being answered goes on. For any thread."""
        with self._changed:
            self._stopped = _stopping()
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in waiting:
            job.deliver(Failed(_stopping()))

    def stop(self) -> None:
        """Fail everything, what is being answered before its next pass, and let the thread end. For any thread."""
        self.refuse_waiting()
        with self._changed:
            for slot in self._slots:
                if slot.job is not None:
                    slot.job.deliver(Failed(_stopping()))
                    slot.job.cancel()
            self._ending = True
            self._changed.notify()

    # --- on the engine's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._ending or any(slot.job is not None for slot in self._slots)
                )
                ending = self._ending
            for slot in self._slots:
                if slot.job is not None:
                    self._pass(slot, slot.job)
            if ending:
                return
            while self._begin_next():
                pass

    def _begin_next(self) -> bool:
        """Give the job that waited longest a slot; False where there is no job or no slot."""
        free = [slot for slot in self._slots if slot.job is None]
        with self._changed:
            if not free or not self._waiting:
                return False
            job = self._waiting.popleft()
            if job.cancelled:
                return True
            slot = max(free, key=lambda slot: _fitness(slot, job))
            slot.job = job
        self._turn += 1
        slot.last_used = self._turn
        with self._explained(slot, job):
            handles = [self._loaded.take(file) for file in job.adapters]
            slot.handles, slot.adapters = handles, ()
            slot.context.use([(handle, 1.0) for handle in handles])
            slot.adapters = job.adapters
            self._loaded.tidy({file for other in self._slots if other.job is not None for file in other.adapters})
            slot.answer = slot.context.answer(
                job.prompt, max_tokens=job.max_tokens, sampling=job.sampling, stop=job.stop
            )
        return True

    def _pass(self, slot: _Slot, job: Job) -> None:
        """Let a slot compute once, unless nobody waits for it."""
        answer = slot.answer
        if job.cancelled or answer is None:
            self._free(slot)
            return
        with self._explained(slot, job):
            text = answer.step()
            if text:
                job.deliver(Piece(text))
            if answer.finish is not None:
                usage = Usage(prompt=answer.prompt_tokens, reused=answer.reused_tokens, completion=answer.tokens)
                self._free(slot)
                job.deliver(Ended(answer.finish, usage))

    @contextlib.contextmanager
    def _explained(self, slot: _Slot, job: Job) -> Iterator[None]:
        """Let an error be that job's, not the engine's."""
        try:
            yield
        except BrambleError as error:
            self._free(slot)
            job.deliver(Failed(error))
        except Exception as error:  # noqa: BLE001 (whatever it is, the other slots go on)
            self._free(slot)
            job.deliver(
                Failed(ServingError(f"the engine failed: {error!r}", advice="Ask again; report it if it comes back."))
            )

    def _free(self, slot: _Slot) -> None:
        if slot.answer is not None:
            slot.answer.close()
        slot.answer = None
        with self._changed:
            slot.job = None

    def _take_off(self, handle: AdapterHandle) -> None:
        """Let no slot keep an adapter that is about to be unloaded."""
        for slot in self._slots:
            if handle in slot.handles:
                slot.handles, slot.adapters = [], ()
                slot.context.use([])


def _fitness(slot: _Slot, job: Job) -> tuple[int, int]:
    """Say how well a free slot suits: by what needs not be computed again, then by how long it has been idle."""
    same = slot.adapters == job.adapters
    return (slot.context.shares(job.prompt) + 1 if same and job.prompt else int(same)), -slot.last_used


def _stopping() -> BrambleError:
    return unavailable("the server is stopping", advice="Ask again when it is back.", reason="shutting_down", seconds=5)
