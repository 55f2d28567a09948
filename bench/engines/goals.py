"""What the figures are held against: the numbers that the training engine has to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Key: TypeAlias = tuple[str, str, bool]
"""Case, engine, checkpointing: what names a row."""

MIB_IN_1_6_GB = 1.6e9 / 2**20


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One number to reach.

    Attributes:
        what: in words.
        field: the row's field that counts.
        of: the row that should reach it.
        over: the row it is divided by; None where the field itself counts.
        bound: the number.
        kind: whether the value is to be ``least`` or ``most`` the bound, or the quotient to differ from one by no more
            (``close``).
    """

    what: str
    field: str
    of: Key
    over: Key | None = None
    bound: float
    kind: Literal["least", "most", "close"] = "least"

    def judge(self, rows: Mapping[Key, Mapping[str, object]]) -> dict[str, object]:
        """Give the line of the report; ``reached`` and ``met`` are None where a row was not measured."""
        sign = {"least": "≥", "most": "≤", "close": "within"}[self.kind]
        line: dict[str, object] = {"what": self.what, "required": f"{sign} {self.bound:.4g}"}
        needed = [self.of] if self.over is None else [self.of, self.over]
        values = [float(str(rows[key][self.field])) for key in needed if key in rows]
        if len(values) < len(needed):
            return {**line, "reached": None, "met": None}
        value = values[0] if self.over is None else values[0] / values[1]
        if self.kind == "close":
            value = abs(value - 1)
        met = value >= self.bound if self.kind == "least" else value <= self.bound
        return {**line, "reached": round(value, 4), "met": met}


def judge_all(rows: Sequence[Mapping[str, object]], goals: Sequence[Goal]) -> list[dict[str, object]]:
    """Judge every goal on the rows of a report."""
    by_key: dict[Key, Mapping[str, object]] = {
        (str(row["case"]), str(row["engine"]), bool(row["checkpointing"])): row for row in rows
    }
    return [goal.judge(by_key) for goal in goals]


def _beside_peft(case: str, label: str) -> list[Goal]:
    """Give what is asked at 4 x 512, for one block type."""
    ours, kept = (case, "bramble", False), (case, "bramble", True)
    fp32, bf16 = (case, "peft-fp32", False), (case, "peft-bf16", False)
    return [
        Goal(what=f"{label}: tokens/s over PEFT fp32", field="tok_s", of=ours, over=fp32, bound=3.0),
        Goal(what=f"{label}: tokens/s over PEFT bf16", field="tok_s", of=ours, over=bf16, bound=1.8),
        Goal(what=f"{label}: peak over PEFT fp32", field="peak_mb", of=ours, over=fp32, bound=1 / 3, kind="most"),
        Goal(what=f"{label}: share of the best product", field="gemm_fraction", of=ours, bound=0.55),
        Goal(what=f"{label}, checkpointing: tokens/s over PEFT fp32", field="tok_s", of=kept, over=fp32, bound=2.0),
        Goal(
            what=f"{label}, checkpointing: peak over PEFT fp32",
            field="peak_mb",
            of=kept,
            over=fp32,
            bound=1 / 6,
            kind="most",
        ),
    ]


_SMALL, _LARGE = "q8_0-2x256", "q8_0-4x512"

GOALS: tuple[Goal, ...] = (
    *_beside_peft(_LARGE, "Q8_0 4 x 512"),
    Goal(
        what="Q8_0 4 x 512, bf16 off: tokens/s over PEFT fp32",
        field="tok_s",
        of=(_LARGE, "bramble-fp32", False),
        over=(_LARGE, "peft-fp32", False),
        bound=1.4,
    ),
    Goal(
        what="Q8_0 2 x 256: tokens/s over PEFT fp32",
        field="tok_s",
        of=(_SMALL, "bramble", False),
        over=(_SMALL, "peft-fp32", False),
        bound=2.5,
    ),
    Goal(
        what="Q8_0 2 x 256: peak over PEFT fp32",
        field="peak_mb",
        of=(_SMALL, "bramble", False),
        over=(_SMALL, "peft-fp32", False),
        bound=1 / 2,
        kind="most",
    ),
    *_beside_peft("q4_0-4x512", "Q4_0 4 x 512"),
    Goal(
        what="Q8_0 4 x 512, last half of the layers, 3 epochs, trunk cache: tokens/s over PEFT fp32, all included",
        field="tok_s",
        of=("q8_0-half", "bramble-trunk-cache", False),
        over=("q8_0-half", "peft-fp32", False),
        bound=5.0,
    ),
    Goal(
        what="1B shape, Q4_K_M 1 x 512, checkpointing: peak in MiB (1.6 GB)",
        field="peak_mb",
        of=("1b-1x512", "bramble", True),
        bound=MIB_IN_1_6_GB,
        kind="most",
    ),
    Goal(
        what="Q8_0 2 x 64, 50 steps: final loss beside PEFT fp32",
        field="final_loss",
        of=("q8_0-curve", "bramble", False),
        over=("q8_0-curve", "peft-fp32", False),
        bound=0.01,
        kind="close",
    ),
)
