"""The kit for merge rules."""

from __future__ import annotations

import hashlib
import os
import pickle  # between this process and its own child # nosec B403
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.rule import Contribution, Merged, MergeRule, merge
from agent.llm.adapter import Adapter, LoraFactors, ModulePath, from_bytes
from agent.testing.promises import BrokenPromiseError, expecting, promise
from agent.testing.samples import SMALL_SHAPES, random_adapter, random_delta
from agent.update.delta import Delta, Factors
from agent.update.start import initial_adapter

_TURNS = (1, 2)
"""An odd and an even round: what a rule wants trained may differ between them."""
_OPTIMISERS = (
    PLAIN,
    OuterOptimiser(name="nesterov", learning_rate=0.7),
    OuterOptimiser(name="fedadam", learning_rate=0.05),
)
_WIDE = {ModulePath("model.layers.0.mlp.up_proj"): (160, 96), ModulePath("model.layers.0.self_attn.k_proj"): (64, 96)}
"""Layers large enough for BLAS to use several threads, if it were let."""
_LARGE = {ModulePath(f"model.layers.{layer}.mlp.up_proj"): (400, 300) for layer in range(4)}
"""Layers whose factors are large beside what a report keeps of each update."""


def check_merge_rule(rule: MergeRule) -> None:
    """Check what every merge rule promises.

    That is: form, fixed points, determinism (over orders of arrival, processes and numbers of threads), shares of
    weight, additivity where the rule says that it is linear, late starts, outer optimisers and what they carry,
    refusals, and bounded memory.

    Raises:
        BrokenPromiseError: the first promise that is broken.
    """
    promise(isinstance(rule, MergeRule), "a rule has name, linear, factors() and start()")
    for number in range(1, 9):
        promise(rule.factors(number) in ("both", "a", "b"), "factors() says both, a or b for every round")
    for turn in _TURNS:
        factors = rule.factors(turn)
        _check_form(rule, factors)
        _check_fixed_point(rule, factors)
        _check_order(rule, factors)
        _check_weights(rule, factors)
        _check_additivity(rule, factors)
        _check_late_starts(rule, factors)
    _check_optimisers(rule)
    _check_processes(rule)
    _check_refusals(rule)
    _check_memory(rule)


def _check_form(rule: MergeRule, factors: Factors) -> None:
    """Check that adapters come out as they went in, and that the inputs stay as they are."""
    community = random_adapter()
    before = community.to_bytes()
    deltas = _deltas(3, factors)
    copies = [[(f.a.copy(), f.b.copy()) for f in delta.modules.values()] for delta in deltas]
    merged = _run(rule, community, [(delta, 1.0) for delta in deltas])
    promise(community.to_bytes() == before, "a merge does not alter the community adapter")
    for delta, copy in zip(deltas, copies, strict=True):
        same = all(
            np.array_equal(f.a, a) and np.array_equal(f.b, b)
            for f, (a, b) in zip(delta.modules.values(), copy, strict=True)
        )
        promise(same, "a merge does not alter the updates")
    adapter = merged.adapter
    same_form = (adapter.rank, adapter.alpha, adapter.base_sha256, adapter.shapes) == (
        community.rank,
        community.alpha,
        community.base_sha256,
        community.shapes,
    )
    promise(same_form, "the next adapter has the community's rank, alpha, base and modules")
    promise(
        all(f.a.dtype == np.float32 and f.b.dtype == np.float32 for f in adapter.modules.values()),
        "factors are float32",
    )
    promise(from_bytes(adapter.to_bytes()).shapes == adapter.shapes, "the next adapter is finite and can be read back")
    promise(adapter.to_bytes() != before, "updates change something")
    report = merged.report
    promise(report.updates == len(deltas), "the report counts the updates")
    promise(abs(sum(report.weights) - 1.0) < 1e-9, "the report's weights sum to 1")
    promise(
        len(report.weights) == len(report.norms) == len(report.cosines) == len(deltas),
        "the report has a weight, a norm and a cosine for every update",
    )
    promise(all(-1.0 <= cosine <= 1.0 for cosine in report.cosines), "a cosine is between -1 and 1")
    shares = report.released_energy + report.carried_energy + report.discarded_energy
    promise(abs(shares - 1.0) < 1e-6, "the report's energies sum to 1")
    _run(rule, adapter, [(deltas[0], 1.0)], merged.carry)


def _check_fixed_point(rule: MergeRule, factors: Factors) -> None:
    """Check that devices that learned nothing change nothing, whatever the optimiser."""
    community = random_adapter()
    still = Delta(
        rank=community.rank,
        modules={
            name: LoraFactors(a=np.zeros_like(f.a), b=np.zeros_like(f.b)) for name, f in community.modules.items()
        },
        factors=factors,
    )
    for outer in _OPTIMISERS:
        merged = _run(rule, community, [(still, 1.0), (still, 3.0)], outer=outer)
        promise(_close(merged.adapter, community), f"updates of zero leave the products as they were ({outer.name})")
    fresh = initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=1, base_sha256="cd" * 32)
    _run(rule, fresh, [(still, 1.0)])


def _check_order(rule: MergeRule, factors: Factors) -> None:
    """Check that the same updates give the same bytes in whatever order they arrived."""
    community = random_adapter()
    updates = {
        f"device-{seed}": _reader(Contribution(delta=delta, weight=float(seed + 1)))
        for seed, delta in enumerate(_deltas(5, factors))
    }
    first = merge(rule, community, updates)
    second = merge(rule, community, dict(reversed(updates.items())))
    promise(
        first.adapter.to_bytes() == second.adapter.to_bytes() and first.carry == second.carry,
        "the same updates give the same bytes",
    )


def _check_weights(rule: MergeRule, factors: Factors) -> None:
    """Check that only shares of weight count."""
    community = random_adapter()
    deltas = _deltas(3, factors)
    light = _run(rule, community, [(delta, 1.0 + index) for index, delta in enumerate(deltas)])
    heavy = _run(rule, community, [(delta, 1000.0 * (1.0 + index)) for index, delta in enumerate(deltas)])
    promise(_close(light.adapter, heavy.adapter), "multiplying all weights by a number changes nothing")


def _check_additivity(rule: MergeRule, factors: Factors) -> None:
    """Check that a linear rule's outcome follows from the weighted sum alone."""
    if not rule.linear:
        return
    community = random_adapter()
    deltas = _deltas(3, factors)
    weights = (1.0, 2.0, 5.0)
    mean = {}
    for name in deltas[0].modules:
        a = np.tensordot(np.array(weights) / 8, np.array([delta.modules[name].a for delta in deltas]), axes=1)
        b = np.tensordot(np.array(weights) / 8, np.array([delta.modules[name].b for delta in deltas]), axes=1)
        mean[name] = LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32))
    for outer in _OPTIMISERS:
        one_by_one = _run(rule, community, list(zip(deltas, weights, strict=True)), outer=outer)
        summed = Delta(rank=community.rank, modules=mean, factors=factors)
        at_once = _run(rule, community, [(summed, 8.0)], outer=outer)
        promise(_close(one_by_one.adapter, at_once.adapter), f"a linear rule needs nothing but sums ({outer.name})")


def _check_late_starts(rule: MergeRule, factors: Factors) -> None:
    """Check that an update from an older release counts, and that naming the present one changes nothing."""
    older = random_adapter(seed=1)
    first = _run(rule, older, [(delta, 1.0) for delta in _deltas(2, factors)])
    now = first.adapter
    late = random_delta(rank=2, seed=7, factors=factors)
    others = [(delta, 1.0) for delta in _deltas(2, factors)]
    without = _run(rule, now, others, first.carry)
    accumulator = rule.start(now, first.carry)
    for delta, weight in others:
        accumulator.add(delta, weight)
    accumulator.add(late, 0.5, start=older)
    merged = accumulator.finish()
    promise(merged.report.updates == 3, "a late update is counted")
    promise(not _close(merged.adapter, without.adapter, 1e-7), "a late update changes the next adapter")
    named, unnamed = rule.start(now, first.carry), rule.start(now, first.carry)
    named.add(late, 1.0, start=now)
    unnamed.add(late, 1.0)
    promise(_close(named.finish().adapter, unnamed.finish().adapter), "a start that is the present release is no other")
    with expecting(MergeError, "a start of another form is refused"):
        rule.start(now).add(late, 1.0, start=random_adapter(rank=3))
    with expecting(MergeError, "a start of another scaling is refused"):
        rule.start(now).add(late, 1.0, start=random_adapter(alpha=now.alpha + 1))


def _check_optimisers(rule: MergeRule) -> None:
    """Check that an optimiser's state is in the carry, is used, stays bounded, and gives way to another's."""
    for outer in _OPTIMISERS:
        community, carry, sizes = random_adapter(), b"", []
        for number in range(1, 11):
            deltas = [(random_delta(seed=10 * number + i, factors=rule.factors(number)), 1.0) for i in range(2)]
            merged = _run(rule, community, deltas, carry, outer=outer)
            if number > len(_TURNS) and outer.name != "none":
                forgotten = _run(rule, community, deltas, outer=outer)
                promise(
                    not _close(merged.adapter, forgotten.adapter, 1e-7),
                    f"what {outer.name} remembers comes back through the carry",
                )
            community, carry = merged.adapter, merged.carry
            sizes.append(len(carry))
        promise(sizes[-1] <= 1.25 * max(sizes[3:5]) + 4096, f"the carry does not grow with the rounds ({outer.name})")
        deltas = [(random_delta(factors=rule.factors(1)), 1.0)]
        for other in _OPTIMISERS:
            _run(rule, community, deltas, carry, outer=other)
    community, deltas = random_adapter(), [(random_delta(factors=rule.factors(1)), 1.0)]
    still = _run(rule, community, deltas, outer=OuterOptimiser(learning_rate=1e-9))
    promise(_close(still.adapter, community), "a learning rate of almost nothing changes almost nothing")


def _check_processes(rule: MergeRule) -> None:
    """Check that another process, with other hashes and another number of threads, gives the same bytes."""
    try:
        pickled = pickle.dumps(rule)
    except Exception as cause:
        raise BrokenPromiseError("broken promise: a rule can be pickled, to be run in another process") from cause
    digests = [digest_of_a_merge(rule)]
    for threads in ("1", "4"):
        environment = dict(os.environ, OPENBLAS_NUM_THREADS=threads, OMP_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        found = subprocess.run(command, input=pickled, env=environment, capture_output=True, check=False)
        promise(found.returncode == 0, f"a rule works in another process: {found.stderr.decode()[-500:]}")
        digests.append(found.stdout.decode().strip())
    promise(len(set(digests)) == 1, "every process and number of threads gives the same bytes")


def digest_of_a_merge(rule: MergeRule) -> str:
    """Give the hash of what a rule makes of layers that are not small, in two rounds with momentum."""
    community, carry, sha256 = random_adapter(shapes=_WIDE), b"", hashlib.sha256()
    for number in _TURNS:
        updates = {
            f"{seed}": _reader(
                Contribution(
                    delta=random_delta(rank=1 + seed % 4, seed=seed, shapes=_WIDE, factors=rule.factors(number)),
                    weight=1.0 + seed,
                )
            )
            for seed in range(40)
        }
        merged = merge(rule, community, updates, carry, outer=_OPTIMISERS[1])
        community, carry = merged.adapter, merged.carry
        sha256.update(community.to_bytes() + carry)
    return sha256.hexdigest()


def _check_refusals(rule: MergeRule) -> None:
    """Check that what cannot be merged is refused as a MergeError."""
    community, factors = random_adapter(), rule.factors(1)
    good = random_delta(factors=factors)
    with expecting(MergeError, "a merge of no updates is refused"):
        rule.start(community).finish()
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with expecting(MergeError, f"a weight of {weight} is refused"):
            rule.start(community).add(good, weight)
    with expecting(MergeError, "a rank above the community's is refused"):
        rule.start(community).add(random_delta(rank=5, factors=factors), 1.0)
    stranger = {ModulePath("model.layers.9.mlp.up_proj"): (20, 12)}
    with expecting(MergeError, "an unknown module is refused"):
        rule.start(community).add(random_delta(shapes=stranger, factors=factors), 1.0)
    wrong = {**SMALL_SHAPES, ModulePath("model.layers.1.mlp.up_proj"): (20, 16)}
    with expecting(MergeError, "a wrong shape is refused"):
        rule.start(community).add(random_delta(shapes=wrong, factors=factors), 1.0)
    with expecting(MergeError, "a number that is not finite is refused"):
        accumulator = rule.start(community)
        accumulator.add(random_delta(size=float("nan"), factors=factors), 1.0)
        accumulator.finish()
    with expecting(MergeError, "a carry of something else is refused"):
        rule.start(community, b"\x01 no carry of any rule")


def _check_memory(rule: MergeRule) -> None:
    """Check that memory does not grow with the number of devices, but for a few numbers that the report needs."""
    accumulator = rule.start(random_adapter(shapes=_LARGE))
    held = []
    tracemalloc.start()
    try:
        for seed in range(240):
            accumulator.add(random_delta(seed=seed, shapes=_LARGE, factors=rule.factors(1)), 1.0)
            if seed in (119, 239):
                held.append(tracemalloc.get_traced_memory()[0])
        accumulator.finish()
    finally:
        tracemalloc.stop()
    one = 4 * random_delta(shapes=_LARGE).parameter_count
    promise(held[1] - held[0] < 120 * one / 4, "memory does not grow with the number of updates")


def _deltas(count: int, factors: Factors) -> list[Delta]:
    return [random_delta(seed=seed, factors=factors) for seed in range(count)]


def _close(one: Adapter, other: Adapter, atol: float = 1e-4) -> bool:
    """Tell whether two adapters change the weights alike, whatever their factors."""
    return all(
        bool(np.allclose(f.b @ f.a, other.modules[name].b @ other.modules[name].a, atol=atol, rtol=0))
        for name, f in one.modules.items()
    )


def _run(
    rule: MergeRule,
    community: Adapter,
    updates: Sequence[tuple[Delta, float]],
    carry: bytes = b"",
    *,
    outer: OuterOptimiser = PLAIN,
) -> Merged:
    accumulator = rule.start(community, carry, outer=outer)
    for delta, weight in updates:
        accumulator.add(delta, weight)
    return accumulator.finish()


def _reader(update: Contribution) -> Callable[[], Contribution]:
    return lambda: update


if __name__ == "__main__":  # the other process of _check_processes
    sys.stdout.write(digest_of_a_merge(pickle.load(sys.stdin.buffer)))  # noqa: S301 (from its own parent) # nosec B301
