"""How far a training is, on standard error: a bar where a person watches, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import TaskID

    from agent.training.job import Progress

_PLAIN_SECONDS = 5.0
_WORDS = {
    ("prepare", "read"): "reading text",
    ("prepare", "tokenise"): "making windows",
    ("prepare", "write"): "making windows",
    ("train", "load"): "loading",
    ("train", "trunk"): "computing the unchanged layers",
    ("train", "write"): "writing",
}
_STAGES = {"prepare": "reading text", "plan": "planning", "train": "training", "judge": "judging by llama.cpp"}


class Watch:
    """Shows stages while its context lasts."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._doing = ""
        self._loss: float | None = None
        self._heldout: float | None = None
        self._tok_s: float | None = None
        self._said = 0.0
        self.step = self.steps = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def hear(self, stage: str, progress: Progress) -> None:
        """Take in how far a stage is."""
        if stage == "train" and progress.phase == "evaluate":
            self._heldout = progress.loss
        elif stage == "train" and progress.phase == "train":
            self._loss, self._tok_s = progress.loss, progress.tok_s
        if stage == "train" and progress.phase in {"train", "evaluate"}:
            self.step, self.steps = progress.step, progress.steps
            doing = _STAGES[stage]
        else:
            doing = _WORDS.get((stage, progress.phase), _STAGES.get(stage, stage))
        self._show(doing, progress)

    def _show(self, doing: str, progress: Progress) -> None:
        total = progress.steps or None
        if doing != self._doing:
            self._doing, self._said = doing, 0.0
            if self._task is not None:
                self._bars.remove_task(self._task)
            # what an earlier command did counts for the bar, not for the time left
            self._task = self._bars.add_task(doing, total=total, completed=progress.step, numbers="")
        assert self._task is not None
        self._bars.update(self._task, completed=progress.step, total=total, numbers=self._numbers(doing))
        self._say(doing, progress)

    def _numbers(self, doing: str) -> str:
        if doing != _STAGES["train"]:
            return ""
        parts = (
            ("loss", self._loss, "{:.3f}"),
            ("held out", self._heldout, "{:.3f}"),
            ("", self._tok_s, "{:,.0f} tok/s"),
        )
        return ", ".join(f"{name} {form.format(value)}".strip() for name, value, form in parts if value is not None)

    def _say(self, doing: str, progress: Progress) -> None:
        """Without a terminal, say now and then how far it is."""
        now = time.monotonic()
        if self.console.is_terminal or now - self._said < _PLAIN_SECONDS:
            return
        self._said = now
        counts = f" {progress.step} of {progress.steps}" if progress.steps else ""
        numbers = self._numbers(doing)
        self.console.print(f"{doing}{counts}{': ' if numbers else ''}{numbers}", soft_wrap=True)
