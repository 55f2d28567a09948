from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from agent.errors import MergeError
from agent.hub.merge.packed import PackedUpdate, TakesPacked
from agent.hub.merge.row import Places
from agent.hub.merge.rule import Contribution, Merged, load_rule, merge
from agent.llm.adapter import Adapter, FloatArray, ModulePath
from agent.testing import SMALL_SHAPES, random_adapter, random_delta
from agent.update.delta import Delta, Factors


@dataclass(frozen=True)
class Layout:
    rank: int
    factors: Factors
    modules: Mapping[ModulePath, tuple[int, int]]


@dataclass
class Packed:
    """A delta that counts how it is asked for."""

    content: Delta
    rows: int = 0
    deltas: int = 0

    @property
    def layout(self) -> Layout:
        return Layout(self.content.rank, self.content.factors, self.content.shapes)

    def write(self, row: FloatArray, weight: float) -> None:
        self.rows += 1
        Places(self.content.shapes, self.content.rank, self.content.factors).write(self.content, row)
        row *= np.float32(weight)

    def delta(self) -> Delta:
        self.deltas += 1
        return self.content


def merged(rule: str, community: Adapter, updates: list[Delta] | list[Packed]) -> Merged:
    readers = {
        f"{index}": lambda update=update, index=index: Contribution(update, 1.0 + index)  # type: ignore[misc]
        for index, update in enumerate(updates)
    }
    return merge(load_rule(rule), community, readers)


@pytest.mark.parametrize("rule", ["stack", "fedavg", "ffa", "alternate"])
def test_packed_updates_merge_to_the_same_bytes_as_their_deltas(rule: str) -> None:
    community = random_adapter()
    factors = load_rule(rule).factors(1)
    deltas = [random_delta(rank=rank, seed=rank, factors=factors) for rank in (4, 2, 4)]
    packed = [Packed(delta) for delta in deltas]
    assert isinstance(packed[0], PackedUpdate)
    one, other = merged(rule, community, deltas), merged(rule, community, packed)
    assert one.adapter.to_bytes() == other.adapter.to_bytes()
    assert one.report == other.report


@pytest.mark.parametrize(("rule", "rows", "deltas"), [("fedavg", [1, 0, 1], [0, 1, 0]), ("stack", [0] * 3, [1] * 3)])
def test_a_linear_rule_takes_the_rows_of_full_updates_and_every_rule_the_deltas_of_others(
    rule: str, rows: list[int], deltas: list[int]
) -> None:
    packed = [Packed(random_delta(rank=rank, seed=rank)) for rank in (4, 2, 4)]
    merged(rule, random_adapter(), packed)
    assert [update.rows for update in packed] == rows
    assert [update.deltas for update in packed] == deltas


def test_an_update_with_fewer_modules_is_taken_as_a_delta() -> None:
    delta = random_delta()
    few = Packed(Delta(rank=4, modules={name: delta.modules[name] for name in sorted(SMALL_SHAPES)[1:]}))
    merged("fedavg", random_adapter(), [few])
    assert (few.rows, few.deltas) == (0, 1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_packed_update_without_weight_is_refused_unread(weight: float) -> None:
    accumulator, update = load_rule("fedavg").start(random_adapter()), Packed(random_delta())
    assert isinstance(accumulator, TakesPacked)
    with pytest.raises(MergeError, match="cannot weigh"):
        accumulator.add_packed(update, weight)
    assert (update.rows, update.deltas) == (0, 0)


def test_a_packed_update_with_numbers_that_are_not_finite_is_refused() -> None:
    with pytest.raises(MergeError, match="not finite"):
        merged("fedavg", random_adapter(), [Packed(random_delta(size=float("nan")))])
