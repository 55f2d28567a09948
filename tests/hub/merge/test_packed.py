from __future__ import annotations

from collections.abc import Callable, Mapping
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
from agent.update import codes
from agent.update.delta import Delta, Factors
from agent.update.wire import UpdateHeader, encode_update, open_update


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

    def codes(self, weight: float) -> None:  # noqa: ARG002 (it has none)
        return None

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


@pytest.mark.skipif(not codes.can_add(), reason="this installation has no compiled kernels")
@pytest.mark.parametrize("rule", ["fedavg", "alternate", "ffa"])
@pytest.mark.parametrize("outer", [PLAIN, OuterOptimiser(name="nesterov")], ids=["plain", "nesterov"])
def test_updates_merge_to_the_same_bytes_with_and_without_kernels(
    rule: str, outer: OuterOptimiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    community = random_adapter()
    readers = {f"{index:02}": encoded(index, rule, community) for index in range(45)}
    fast = merge(load_rule(rule), community, readers, outer=outer)
    monkeypatch.setattr("agent.hub.merge.intake.can_add", lambda: False)
    slow = merge(load_rule(rule), community, readers, outer=outer)
    assert fast.adapter.to_bytes() == slow.adapter.to_bytes()
    assert fast.carry == slow.carry
    assert fast.report.weights == slow.report.weights
    assert fast.report.norms == pytest.approx(slow.report.norms, rel=1e-5)
    assert fast.report.cosines == pytest.approx(slow.report.cosines, abs=1e-4)


def encoded(index: int, rule: str, community: Adapter) -> Callable[[], Contribution]:
    """What reads an update from its wire form: of either width, of other compressions and of lower rank among them."""
    factors = load_rule(rule).factors(1)
    rank = 2 if index % 11 == 5 else community.rank
    header = UpdateHeader(
        round=1,
        base_sha256=community.base_sha256,
        start_release="cd" * 32,
        rank=rank,
        alpha=community.alpha,
        tokens=100,
        steps=4,
        seed=index,
        factors=factors,
    )
    compression = ("int4", "int4", "int4", "int8", "int8", "topk", "none")[index % 7]
    delta = random_delta(rank=rank, seed=index, factors=factors)
    data = encode_update(header, delta, compression, density=0.3 if compression == "topk" else 1.0)

    def read() -> Contribution:
        opened = open_update(data, expected=community.shapes, max_rank=community.rank, max_bytes=len(data))
        return Contribution(delta=opened, weight=1.0 + index)

    return read


@pytest.mark.skipif(not codes.can_add(), reason="this installation has no compiled kernels")
def test_numbers_too_large_to_merge_are_refused_as_codes_too() -> None:
    community = random_adapter()
    header = UpdateHeader(
        round=1,
        base_sha256=community.base_sha256,
        start_release="cd" * 32,
        rank=community.rank,
        alpha=community.alpha,
        tokens=100,
        steps=4,
        seed=0,
    )
    data = encode_update(header, random_delta(size=1e9), "int4")
    opened = open_update(data, expected=community.shapes, max_rank=community.rank, max_bytes=len(data))
    assert opened.codes(1.0) is not None
    with pytest.raises(MergeError, match="too large"):
        merge(load_rule("fedavg"), community, {"d": lambda: Contribution(opened, 1.0)})
