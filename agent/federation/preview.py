"""What a model would see of some text: windows are made as for training, shown, and thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.data.consent import ConsentBook
from agent.device.machine import this_machine
from agent.errors import NoTextError
from agent.federation.store import open_device_store
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from agent.settings import load_settings
from agent.training.job import PrepareJob, PrepareResult, Progress
from agent.training.process import run_worker

WINDOW = 256
"""Tokens in a window where no charter says how many."""


def preview_job(home: Home, *, path: Path | None, base: Path | None, window: int | None, samples: int) -> PrepareJob:
    """Say what is to be previewed, and for which base.

    Args:
        home: of a device, which need not exist where ``path`` is given.
        path: the text; None for what the owner consented to.
        base: the GGUF; None for the community's, or the seedling where there is no community.
        window: tokens in a window; None for what the charter says.
        samples: how many windows to show.

    Raises:
        NotInitialisedError: no path is given, and there is no device.
        NoTextError: no path is given, and nothing was consented to.
    """
    settings = load_settings(home.settings, over=this_machine(home).training_settings())
    sources: list[Path] = [] if path is None else [path]
    if path is None or home.database.is_file():
        with open_device_store(home) as store:
            if store.is_member:
                base = base or store.membership.base
                window = window or store.membership.charter.training.window
            if path is None:
                sources = [consent.path for consent in ConsentBook(store.connection).sources()]
    if not sources:
        raise NoTextError(
            "no text was added yet",
            advice="Name some: `bramble data preview PATH`. Add it with `bramble data add PATH`.",
        )
    return PrepareJob(
        base_path=base or SEEDLING_PATH,
        threads=settings.threads,
        sources=tuple(sources),
        out_dir=Path(),
        window=window or WINDOW,
        holdout_fraction=settings.holdout_fraction,
        filter_secrets=settings.filter_secrets,
        samples=samples,
    )


async def preview_text(job: PrepareJob, *, on_progress: Callable[[Progress], None] | None = None) -> PrepareResult:
    """Make the windows of a job in a worker and keep none of them; the paths in the result lead nowhere.

    Raises:
        NoTextError: there is no text, or too little.
        ModelError: the base cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="bramble-preview-") as directory:
        return await run_worker(job.model_copy(update={"out_dir": Path(directory)}), on_progress=on_progress)
