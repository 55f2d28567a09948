from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.linear import FedAvgRule
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.packed import PackedUpdate, TakesPacked
from agent.hub.merge.row import Places
from agent.hub.merge.rule import Accumulator, Contribution, Merged, load_rule, merge
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


@pytest.mark.parametrize("rule", ["fedavg", "stack"])
def test_built_in_rules_take_the_rows_of_full_updates_and_the_deltas_of_others(rule: str) -> None:
    packed = [Packed(random_delta(rank=rank, seed=rank)) for rank in (4, 2, 4)]
    merged(rule, random_adapter(), packed)
    assert [update.rows for update in packed] == [1, 0, 1]
    assert [update.deltas for update in packed] == [0, 1, 0]


def test_a_rule_that_knows_nothing_of_packed_updates_gets_their_deltas() -> None:
    class Plain:
        name, linear = "plain", True
        factors = FedAvgRule().factors

        def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> Accumulator:
            whole = FedAvgRule().start(community, carry, outer=outer)
            return cast("Accumulator", SimpleNamespace(add=whole.add, finish=whole.finish))

    update = Packed(random_delta())
    merge(Plain(), random_adapter(), {"d": lambda: Contribution(update, 1.0)})
    assert (update.rows, update.deltas) == (0, 1)


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
