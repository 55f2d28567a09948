"""What is to be trained alone: what the owner said, and for the rest what the community's charter or the base says."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from agent.data.consent import ConsentBook
from agent.device.machine import Machine, this_machine
from agent.errors import NoTextError, NotInitialisedError, NotJoinedError, SettingsError
from agent.federation.store import open_device_store
from agent.governance.charter import Charter, TrainingPlan
from agent.llm.gguf_file import linear_names, open_gguf, sha256_file, target_shapes
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from agent.settings import DeviceSettings, load_settings
from agent.training.job import Compute, PlanJob, PlanResult, PrepareJob, Sha256, TrainJob

EPOCHS = 3.0
"""How often every window is seen where nobody says; held-out text stops it earlier."""
LOOKS = 20
"""About how often a training looks at its held-out windows."""
LEAST_APART = 5
"""Steps between two looks at least."""
_ALPHA_A_RANK = 2.0
_WARMUP_SHARE = 10


_NOT_WHAT_IS_MADE = ("threads", "checkpoint_seconds", "max_memory_mb", "max_micro_batch")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wanted(_Frozen):
    """What the owner said. None means: not said; :class:`Order` tells what each of them is."""

    sources: tuple[Path, ...] = ()
    base: Path | None = None
    window: int | None = Field(default=None, ge=16)
    rank: int | None = Field(default=None, ge=1, le=256)
    alpha: float | None = Field(default=None, gt=0)
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    last_layers: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    checkpointing: bool | None = None
    trunk_cache: bool | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    patience: int = Field(default=3, ge=1)
    compute: Compute | None = None
    memory_mb: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    filter_secrets: bool | None = None


class Order(_Frozen):
    """A training that is to be done alone.

    Attributes:
        base_path: the GGUF base.
        base_sha256: of that file.
        sources: files and folders of text.
        consented: whether they are what the owner consented to for all trainings, and not named for this one.
        window: tokens in a window.
        holdout_fraction: share of the text that is never trained on.
        filter_secrets: take keys, passwords and personal data out of the text.
        rank: of the adapter.
        alpha: of the adapter.
        rslora: scale by ``alpha / sqrt(rank)``.
        target_modules: last names of the layers to change.
        last_layers: change only so many layers, the last ones; None for all.
        steps: optimiser steps; None where ``epochs`` says it.
        epochs: how often every window is seen.
        batch_size: windows a step.
        micro_batch: windows a pass; None for the plan to choose.
        max_micro_batch: no more than this where the plan chooses.
        checkpointing: keep less for the backward pass; None for the plan to choose.
        trunk_cache: keep what the unchanged layers give on disk; None for the plan to choose.
        learning_rate: at its highest.
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient.
        seed: of the initial A and of the order of the windows.
        patience: looks at held-out text without a lower loss before training stops.
        compute: arithmetic of the frozen layers.
        memory_mb: what training may take at most, MiB; None for what is free.
        max_memory_mb: no more than this of what is free, MiB.
        max_heldout_windows: held-out windows that base and adapter are compared on in the end.
        checkpoint_seconds: how much training a power cut may cost.
        threads: to compute on.
    """

    base_path: Path
    base_sha256: Sha256
    sources: tuple[Path, ...]
    consented: bool
    window: int
    holdout_fraction: float
    filter_secrets: bool
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    last_layers: int | None
    steps: int | None
    epochs: float
    batch_size: int
    micro_batch: int | None
    max_micro_batch: int | None = None
    checkpointing: bool | None
    trunk_cache: bool | None
    learning_rate: float
    weight_decay: float
    grad_clip: float
    seed: int
    patience: int
    compute: Compute
    memory_mb: int | None
    max_memory_mb: int | None = None
    max_heldout_windows: int
    checkpoint_seconds: float
    threads: int

    def is_same_as(self, other: Order) -> bool:
        """Say whether both make the same adapter, so that one can go on where the other stopped."""
        same = {name: getattr(self, name) for name in _NOT_WHAT_IS_MADE}
        return other.model_copy(update=same) == self

    def prepare_job(self, directory: Path) -> PrepareJob:
        """Say how the text becomes windows in a directory."""
        return PrepareJob(
            base_path=self.base_path,
            threads=self.threads,
            sources=self.sources,
            out_dir=directory,
            window=self.window,
            holdout_fraction=self.holdout_fraction,
            filter_secrets=self.filter_secrets,
            seed=self.seed,
        )

    def steps_for(self, windows: int) -> int:
        """Give how many steps there are with so many windows to train on."""
        return self.steps or max(1, math.ceil(self.epochs * windows / self.batch_size))

    def plan_job(self, *, train: Path, heldout: Path, windows: int) -> PlanJob:
        """Ask what training on so many prepared windows will take."""
        steps = self.steps_for(windows)
        return PlanJob(
            base_path=self.base_path,
            threads=self.threads,
            windows_path=train,
            heldout_path=heldout,
            rank=self.rank,
            target_modules=self.target_modules,
            last_layers=self.last_layers,
            batch_size=self.batch_size,
            steps=steps,
            memory_mb=self.memory_mb,
            max_memory_mb=self.max_memory_mb,
            compute=self.compute,
            micro_batch=self.micro_batch,
            max_micro_batch=self.max_micro_batch,
            checkpointing=self.checkpointing,
            trunk_cache=self.trunk_cache,
            evaluate_every=_evaluate_every(steps),
        )

    def train_job(self, plan: PlanResult, *, train: Path, heldout: Path, checkpoint: Path, out: Path) -> TrainJob:
        """Say what a worker trains, with what the plan chose."""
        return TrainJob(
            base_path=self.base_path,
            base_sha256=self.base_sha256,
            threads=self.threads,
            windows_path=train,
            heldout_path=heldout,
            rank=self.rank,
            alpha=self.alpha,
            rslora=self.rslora,
            target_modules=self.target_modules,
            last_layers=self.last_layers,
            steps=plan.steps,
            batch_size=plan.batch_size,
            micro_batch=plan.micro_batch,
            checkpointing=plan.checkpointing,
            trunk_cache=plan.trunk_cache,
            compute=plan.compute,
            learning_rate=self.learning_rate,
            warmup_steps=max(1, plan.steps // _WARMUP_SHARE),
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            seed=self.seed,
            evaluate_every=_evaluate_every(plan.steps),
            patience=self.patience,
            checkpoint_dir=checkpoint,
            checkpoint_seconds=self.checkpoint_seconds,
            out_dir=out,
        )


def _evaluate_every(steps: int) -> int:
    return max(LEAST_APART, round(steps / LOOKS))


def take_order(home: Home, wanted: Wanted) -> Order:
    """Fill in what the owner did not say.

    Args:
        home: of a device, which need not exist where text is named.
        wanted: what the owner said.

    Raises:
        NotInitialisedError: no text is named, and there is no device.
        NoTextError: no text is named, and nothing was consented to.
        ModelError: the base cannot be trained.
        AdapterError: it has no layers of a name that was given.
        SettingsError: the window is longer than what the base was trained to read.
    """
    machine = this_machine(home)
    settings = _settings(home, wanted, machine)
    charter, base, sources = _of_the_device(home, wanted)
    base_path = (wanted.base or base or SEEDLING_PATH).resolve()
    model = open_gguf(base_path)
    sha256 = sha256_file(base_path)
    if charter is not None and charter.base_sha256 != sha256:
        charter = None
    suited = machine.profile.training
    training = charter.training if charter else TrainingPlan(batch_size=suited.batch, window=suited.window)
    targets = wanted.target_modules or (charter.target_modules if charter else linear_names(model))
    target_shapes(model, targets)
    window = wanted.window or (training.window if charter else min(training.window, model.config.context_length))
    if window > model.config.context_length:
        raise SettingsError(
            f"a window of {window} tokens is longer than what {base_path.name} was trained to read:"
            f" {model.config.context_length}",
            advice=f"Use --window {model.config.context_length} or less.",
        )
    rank = wanted.rank or settings.rank or (min(charter.rank, suited.max_rank) if charter else suited.rank)
    same_rank = charter is not None and rank == charter.rank
    return Order(
        base_path=base_path,
        base_sha256=sha256,
        sources=sources,
        consented=not wanted.sources,
        window=window,
        holdout_fraction=settings.holdout_fraction,
        filter_secrets=settings.filter_secrets,
        rank=rank,
        alpha=wanted.alpha or (charter.alpha if charter and same_rank else _ALPHA_A_RANK * rank),
        rslora=wanted.rslora,
        target_modules=targets,
        last_layers=wanted.last_layers,
        steps=wanted.steps,
        epochs=wanted.epochs or EPOCHS,
        batch_size=wanted.batch_size or training.batch_size,
        micro_batch=wanted.micro_batch,
        max_micro_batch=settings.micro_batch or suited.micro_batch,
        checkpointing=wanted.checkpointing,
        trunk_cache=wanted.trunk_cache,
        learning_rate=wanted.learning_rate or training.learning_rate,
        weight_decay=training.weight_decay,
        grad_clip=training.grad_clip,
        seed=wanted.seed,
        patience=wanted.patience,
        compute=settings.compute,
        memory_mb=settings.memory_mb,
        max_memory_mb=machine.budget.memory_mb,
        max_heldout_windows=settings.max_heldout_windows,
        checkpoint_seconds=settings.checkpoint_seconds,
        threads=settings.threads,
    )


def _settings(home: Home, wanted: Wanted, machine: Machine) -> DeviceSettings:
    """Give the settings of the device with what was said on top, and what suits the machine beneath."""
    said = {name: getattr(wanted, name) for name in ("compute", "memory_mb", "threads", "filter_secrets")}
    return load_settings(home.settings, over=machine.training_settings(), command_line=said)


def _of_the_device(home: Home, wanted: Wanted) -> tuple[Charter | None, Path | None, tuple[Path, ...]]:
    """Give the charter and base of the device's community, where there is one, and the text."""
    charter: Charter | None = None
    base: Path | None = None
    sources = tuple(sorted(path.resolve() for path in wanted.sources))
    if not sources or home.database.is_file():
        with open_device_store(home) as store:
            if store.is_member:
                charter, base = store.membership.charter, store.membership.base
            if not sources:
                sources = tuple(consent.path for consent in ConsentBook(store.connection).sources())
    if not sources:
        raise NoTextError(
            "no text was added yet", advice="Name some: `bramble train PATH`. Or add it: `bramble data add PATH`."
        )
    return charter, base, sources


def require_consent(home: Home, order: Order) -> None:
    """Check that consent for text that was not named for this one training still stands.

    Raises:
        ConsentMissingError: it was withdrawn.
    """
    if order.consented:
        with contextlib.suppress(NotInitialisedError, NotJoinedError), open_device_store(home) as store:
            ConsentBook(store.connection).require(order.sources)
