"""What a worker process can be asked to do, and what it answers. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent.training.schedule import Schedule

Compute: TypeAlias = Literal["auto", "float32", "bfloat16"]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

PAUSED_STATUS = 75
"""Exit status of a worker that kept a checkpoint and left because it was asked to (``EX_TEMPFAIL``)."""


class _Frozen(BaseModel):
    """A value that crosses the border between two processes as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class _JobBase(_Frozen):
    """What every job has.

    Attributes:
        base_path: the GGUF base.
        threads: threads to compute on.
    """

    base_path: Path
    threads: int = Field(default=1, ge=1, le=1024)


class PrepareJob(_JobBase):
    """Turn the owner's text into windows of tokens.

    Attributes:
        sources: files and folders of text.
        out_dir: gets ``train.npz`` and ``heldout.npz`` (:mod:`agent.training.windows_file`).
        window: tokens a window.
        holdout_fraction: share of the passages that is never trained on.
        max_windows: most training windows; None for all.
        max_heldout_windows: most held-out windows; None for all.
        filter_secrets: take keys, passwords and personal data out before anything is made of the text.
        samples: how many of the training windows to give as text.
        seed: of what is drawn at random.
    """

    kind: Literal["prepare"] = "prepare"
    sources: tuple[Path, ...]
    out_dir: Path
    window: int = Field(default=256, ge=8, le=1 << 20)
    holdout_fraction: float = Field(default=0.1, gt=0, le=0.5)
    max_windows: int | None = Field(default=None, ge=1)
    max_heldout_windows: int | None = Field(default=None, ge=1)
    filter_secrets: bool = True
    samples: int = Field(default=0, ge=0, le=100)
    seed: int = 0


class SampleSpan(_Frozen):
    """Text of a window that all counts, or of which nothing does; control tokens are spelt out."""

    text: str
    counts: bool


class SampleWindow(_Frozen):
    """A window as text.

    Attributes:
        segments: what stands side by side in it without being seen by the others, each as its spans.
        padding: how many tokens are empty.
    """

    segments: tuple[tuple[SampleSpan, ...], ...]
    padding: int


class PrepareResult(_Frozen):
    """What a :class:`PrepareJob` made.

    Attributes:
        train_path: the training windows.
        heldout_path: the held-out windows.
        documents: documents read, conversations included.
        conversations: how many of these are conversations.
        cut: conversations that no window holds whole.
        passages: passages that they were cut into; a conversation is one.
        repeats: passages left out because another one is alike.
        train_passages: passages to train on.
        heldout_passages: passages held back.
        train_windows: windows to train on.
        heldout_windows: windows held back.
        tokens: tokens in all windows, padding left out.
        targets: how many of these count.
        padding: tokens of padding in all windows.
        removed: how much the filter took out, by kind.
        examples: a few of each kind, masked.
        samples: training windows as text, as many as the job asked for.
        skipped: files and lines that were not read, each with its reason; the first of them.
        skipped_count: how many there are.
    """

    kind: Literal["prepare"] = "prepare"
    train_path: Path
    heldout_path: Path
    documents: int
    conversations: int = 0
    cut: int = 0
    passages: int
    repeats: int
    train_passages: int = 0
    heldout_passages: int = 0
    train_windows: int
    heldout_windows: int
    tokens: int
    targets: int = 0
    padding: int = 0
    removed: dict[str, int] = Field(default_factory=dict)
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    samples: tuple[SampleWindow, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    skipped_count: int = 0
    peak_rss_mb: float = 0.0


class TrainJob(_JobBase):
    """Train an adapter.

    Attributes:
        base_sha256: what the base must be.
        windows_path: ``.npz`` with ``tokens``.
        start_adapter: safetensors file or PEFT directory to go on from; None for a new adapter (B is zero).
        rank: of the adapter; a start adapter must have it.
        alpha: of the adapter; a start adapter must have it.
        target_modules: last names of the layers to change, such as ``q_proj``.
        steps: optimiser steps.
        batch_size: windows a step.
        micro_batch: windows a pass; a step adds up the gradients of several passes. None for the whole batch at once.
        checkpointing: keep only the input of each layer for the backward pass and compute the rest again: less memory,
            about a third more work.
        factors: which factors of the adapter to change; the other one stays as it is at the start.
        last_layers: change only so many layers, the last ones; None for all.
        trunk_cache: compute the layers below the changed ones once for each window and keep the result on disk.
        rslora: scale by ``alpha / sqrt(rank)`` instead of ``alpha / rank`` (Kalajdzievski 2023, *rsLoRA*).
        learning_rate: at its highest.
        warmup_steps: steps over which it rises; none where training goes on with moments.
        schedule: whether a cosine takes it down after that, or it stays.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient.
        start_moments: file of another training's moments to go on with, where they are of the same parameters.
        keep_moments: write the moments at the end (:mod:`agent.training.moments`).
        seed: of the initial A and of the order of the windows.
        compute: arithmetic of the frozen layers; ``auto`` measures which is faster here.
        heldout_path: windows to stop early by; None to do all steps.
        evaluate_every: steps between looks at the held-out windows.
        patience: looks without a lower held-out loss before training stops; the best adapter is kept.
        max_heldout_windows: look only at the first so many.
        checkpoint_dir: where a killed worker's successor goes on from; removed by the owner of the job when done.
        checkpoint_seconds: time between checkpoints.
        out_dir: gets ``peft/``, ``adapter.safetensors``, ``adapter.gguf`` and, if wanted, ``moments.safetensors``.
    """

    kind: Literal["train"] = "train"
    base_sha256: Sha256
    windows_path: Path
    start_adapter: Path | None = None
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    factors: Literal["both", "a", "b"] = "both"
    steps: int = Field(ge=1)
    batch_size: int = Field(default=4, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    checkpointing: bool = False
    last_layers: int | None = Field(default=None, ge=1)
    trunk_cache: bool = False
    rslora: bool = False
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Schedule = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    start_moments: Path | None = None
    keep_moments: bool = False
    seed: int = Field(default=0, ge=0)
    compute: Compute = "auto"
    heldout_path: Path | None = None
    evaluate_every: int = Field(default=50, ge=1)
    patience: int = Field(default=3, ge=1)
    max_heldout_windows: int = Field(default=16, ge=1)
    checkpoint_dir: Path
    checkpoint_seconds: float = Field(default=30.0, ge=0)
    out_dir: Path

    @property
    def effective_alpha(self) -> float:
        """The alpha that gives the wanted scaling when it is divided by the rank, as every reader of adapters does."""
        return self.alpha * self.rank**0.5 if self.rslora else self.alpha


class TrainResult(_Frozen):
    """What a :class:`TrainJob` reached.

    Attributes:
        steps: optimiser steps done, earlier workers' included.
        resumed_from: the step at which this worker took over; 0 where it began.
        tokens: target tokens trained on, earlier workers' included.
        first_loss: nats a token of the first step.
        last_loss: nats a token, mean over the last tenth of the steps.
        final_loss: nats a token of the last step.
        losses: nats a token of every step.
        heldout: step and held-out loss of every look; the first is before any step.
        best_step: the step whose adapter was kept, where training looked at held-out windows.
        stopped_early: the held-out loss fell no more.
        seed: of the job: with the same base, windows and settings, training gives this adapter again.
        seconds: that this worker trained, start-up not included.
        tok_s: tokens a second of this worker.
        compute: the arithmetic used.
        peak_rss_mb: largest resident size of this worker, in MiB.
        adapter_path: ``adapter.safetensors``.
        gguf_path: ``adapter.gguf``.
        peft_path: ``peft/``.
        adapter_sha256: of ``adapter.safetensors``.
        moments_path: ``moments.safetensors``; None where the job did not ask for it.
    """

    kind: Literal["train"] = "train"
    steps: int
    resumed_from: int
    tokens: int
    first_loss: float
    last_loss: float
    final_loss: float = 0.0
    losses: tuple[float, ...] = ()
    heldout: tuple[tuple[int, float], ...] = ()
    best_step: int | None = None
    stopped_early: bool = False
    seed: int = 0
    seconds: float
    tok_s: float
    compute: Literal["float32", "bfloat16"]
    peak_rss_mb: float
    adapter_path: Path
    gguf_path: Path
    peft_path: Path
    adapter_sha256: Sha256
    moments_path: Path | None = None


class PlanJob(_JobBase):
    """Say before a training what it will take, and choose what makes it fit.

    What is None is for the plan to choose; what is given is kept.

    Attributes:
        windows_path: ``.npz`` with ``tokens``.
        heldout_path: windows that training looks at to stop early; None for none.
        rank: of the adapter.
        target_modules: last names of the layers to change.
        last_layers: change only so many layers, the last ones; None for all.
        batch_size: windows a step.
        steps: optimiser steps; None where ``epochs`` says it.
        epochs: how often every window is seen; ignored where ``steps`` is given.
        memory_mb: what the worker may take at most, in MiB; None for what is free now.
        max_memory_mb: no more than this of what is free, where ``memory_mb`` is None.
        disk_mb: what a trunk cache may take at most, in MiB.
        compute: arithmetic of the frozen layers.
        micro_batch: windows a pass.
        max_micro_batch: no more than this, where ``micro_batch`` is None.
        checkpointing: keep only the input of each layer for the backward pass.
        trunk_cache: keep the hidden states below the changed layers on disk.
        evaluate_every: steps between looks at the held-out windows.
        max_heldout_windows: look only at the first so many.
    """

    kind: Literal["plan"] = "plan"
    windows_path: Path
    heldout_path: Path | None = None
    rank: int = Field(default=8, ge=1, le=256)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    last_layers: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=4, ge=1)
    steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    memory_mb: int | None = Field(default=None, ge=1)
    max_memory_mb: int | None = Field(default=None, ge=1)
    disk_mb: int = Field(default=4096, ge=0)
    compute: Compute = "auto"
    micro_batch: int | None = Field(default=None, ge=1)
    max_micro_batch: int | None = Field(default=None, ge=1)
    checkpointing: bool | None = None
    trunk_cache: bool | None = None
    evaluate_every: int = Field(default=50, ge=1)
    max_heldout_windows: int = Field(default=16, ge=1)


class PlanResult(_Frozen):
    """What a training will take.

    Attributes:
        windows: windows to train on.
        window: tokens in each.
        steps: optimiser steps.
        epochs: how often every window is seen.
        tokens: tokens that pass through the model, in all steps.
        batch_size: windows a step.
        micro_batch: windows a pass.
        accumulation: passes a step.
        compute: arithmetic of the frozen layers.
        checkpointing: whether only the input of each layer is kept.
        trunk_cache: whether hidden states below the changed layers are kept on disk.
        parameters: numbers in the adapter.
        seconds: of the whole training, start-up included.
        step_seconds: of one step.
        tok_s: tokens a second while it trains.
        peak_mb: largest resident size of the worker, in MiB, mapped pages of the base included.
        disk_mb: largest size of what it writes, in MiB.
        memory_mb: what it was fitted into, in MiB.
        fits: whether it does fit.
        reasons: why it is as it is, a sentence for each choice.
        instead: where it does not fit, what would have to give, a sentence for each way.
    """

    kind: Literal["plan"] = "plan"
    windows: int
    window: int
    steps: int
    epochs: float
    tokens: int
    batch_size: int
    micro_batch: int
    accumulation: int
    compute: Literal["float32", "bfloat16"]
    checkpointing: bool
    trunk_cache: bool
    parameters: int
    seconds: float
    step_seconds: float
    tok_s: float
    peak_mb: float
    disk_mb: float
    memory_mb: float
    fits: bool
    reasons: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    peak_rss_mb: float = 0.0


class ScaledAdapter(_Frozen):
    """A GGUF adapter and how strongly it counts."""

    path: Path
    scale: float = 1.0


class Variant(_Frozen):
    """A base with some adapters, under a name; with none, it is the base alone."""

    name: str
    adapters: tuple[ScaledAdapter, ...] = ()


class EvaluateJob(_JobBase):
    """Measure losses by llama.cpp.

    Attributes:
        windows_path: ``.npz`` with ``tokens``.
        variants: what to measure, all on one loaded base.
        n_ctx: context of llama.cpp; None for the length of the windows.
        max_windows: measure only the first so many; None for all.
    """

    kind: Literal["evaluate"] = "evaluate"
    windows_path: Path
    variants: tuple[Variant, ...] = Field(min_length=1)
    n_ctx: int | None = Field(default=None, ge=2)
    max_windows: int | None = Field(default=None, ge=1)


class MeasureVariant(_Frozen):
    """A base with one adapter as PEFT computes it, under a name; with None, the base alone."""

    name: str
    adapter: Path | None = None


class MeasureJob(_JobBase):
    """Measure the same losses by the model that trains (torch, PEFT), to compare it with llama.cpp.

    Attributes:
        windows_path: ``.npz`` with ``tokens``.
        variants: what to measure; adapters are safetensors files or PEFT directories.
        batch_size: windows at a time.
        compute: arithmetic of the frozen layers.
        max_windows: measure only the first so many; None for all.
    """

    kind: Literal["measure"] = "measure"
    windows_path: Path
    variants: tuple[MeasureVariant, ...] = Field(min_length=1)
    batch_size: int = Field(default=4, ge=1)
    compute: Compute = "float32"
    max_windows: int | None = Field(default=None, ge=1)


class EvaluateResult(_Frozen):
    """What an :class:`EvaluateJob` or a :class:`MeasureJob` found.

    Attributes:
        losses: mean nats a token by name of the variant.
        targets: over how many tokens.
        seconds: for all variants, start-up not included.
        peak_rss_mb: largest resident size of the worker, in MiB.
    """

    kind: Literal["evaluate"] = "evaluate"
    losses: dict[str, float]
    targets: int
    seconds: float
    peak_rss_mb: float


Job: TypeAlias = PrepareJob | PlanJob | TrainJob | EvaluateJob | MeasureJob
Result: TypeAlias = PrepareResult | PlanResult | TrainResult | EvaluateResult


class Progress(_Frozen):
    """How far a worker is.

    Attributes:
        phase: what it is doing: ``load``, ``read``, ``tokenise``, ``measure``, ``trunk``, ``train``, ``evaluate`` or
            ``write``.
        step: how many of ``steps`` are done.
        steps: how many there are; 0 where that is not known.
        loss: nats a token of the latest step, where there is one.
        tok_s: tokens a second, where that is known.
    """

    phase: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tok_s: float | None = None


class ProgressEvent(Progress):
    """A line of a worker's output: progress."""

    event: Literal["progress"] = "progress"


class ResultEvent(_Frozen):
    """A line of a worker's output: its result, the last line."""

    event: Literal["result"] = "result"
    result: Annotated[Result, Field(discriminator="kind")]


class ErrorEvent(_Frozen):
    """A line of a worker's output: an error that can be explained, the last line."""

    event: Literal["error"] = "error"
    code: str
    message: str
    advice: str


class PausedEvent(_Frozen):
    """A line of a worker's output: it was asked to leave, and its checkpoint is kept. The last line."""

    event: Literal["paused"] = "paused"
    step: int = 0
    steps: int = 0


Event: TypeAlias = ProgressEvent | ResultEvent | ErrorEvent | PausedEvent

JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
"""Reads a job from JSON."""

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
"""Reads a line of a worker's output."""
