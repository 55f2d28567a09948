"""Test kits for what plugs into Bramble, usable from any test runner.

A package that brings a merge rule or a source calls the check in its own tests::

    from agent.testing import check_merge_rule

    def test_my_rule_keeps_its_promises() -> None:
        check_merge_rule(MyRule())

Each check returns nothing, or raises :class:`BrokenPromiseError` (an ``AssertionError``) that says which promise of the
protocol is broken and how.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from agent.data.decoding import NotTextError
from agent.data.documents import Document, Skipped
from agent.data.sources import Source
from agent.errors import MergeError
from agent.hub.merge.rule import Merged, MergeRule, merge
from agent.llm.adapter import Adapter, LoraFactors, ModulePath, from_bytes
from agent.update.delta import Delta
from agent.update.start import initial_adapter

SMALL_SHAPES: dict[ModulePath, tuple[int, int]] = {
    ModulePath("model.layers.0.mlp.down_proj"): (12, 20),
    ModulePath("model.layers.0.self_attn.q_proj"): (16, 12),
    ModulePath("model.layers.1.mlp.up_proj"): (20, 12),
}
"""Layers small enough to check with dense matrices."""


class BrokenPromiseError(AssertionError):
    """An implementation does not do what its protocol promises."""


def random_adapter(
    *, rank: int = 4, seed: int = 0, shapes: dict[ModulePath, tuple[int, int]] | None = None, alpha: float = 8.0
) -> Adapter:
    """Give an adapter of random factors whose components are neither ordered nor independent."""
    rng = np.random.default_rng(seed)
    modules = {
        name: LoraFactors(
            a=rng.normal(0, 0.3, (rank, in_)).astype(np.float32), b=rng.normal(0, 0.3, (out, rank)).astype(np.float32)
        )
        for name, (out, in_) in sorted((shapes or SMALL_SHAPES).items())
    }
    return Adapter(rank=rank, alpha=alpha, modules=modules, base_sha256="ab" * 32)


def random_delta(
    *, rank: int = 4, seed: int = 0, shapes: dict[ModulePath, tuple[int, int]] | None = None, size: float = 0.05
) -> Delta:
    """Give a delta of random numbers with this standard deviation."""
    noise = random_adapter(rank=rank, seed=seed + 10_000, shapes=shapes)
    factor = np.float32(size / 0.3)
    modules = {name: LoraFactors(a=f.a * factor, b=f.b * factor) for name, f in noise.modules.items()}
    return Delta(rank=rank, modules=modules)


def check_merge_rule(rule: MergeRule) -> None:
    """Check what every merge rule promises: form, fixed points, determinism, refusals, and bounded memory.

    Raises:
        BrokenPromiseError: the first promise that is broken.
    """
    _check_form(rule)
    _check_fixed_point(rule)
    _check_determinism(rule)
    _check_weights(rule)
    _check_refusals(rule)
    _check_memory(rule)


def check_source(source: Source, path: Path) -> None:
    """Check what every source promises, on a file that it is meant to read.

    Raises:
        BrokenPromiseError: the first promise that is broken.
    """
    _promise(isinstance(source, Source), "a source has a name, accepts() and read()")
    _promise(source.accepts(path), f"a source accepts the file it is meant for ({path.name})")
    data = path.read_bytes()
    found = source.read(path, data)
    documents = [item for item in found if not isinstance(item, Skipped)]
    _promise(bool(documents), "a file with text gives at least one document")
    for skipped in [item for item in found if isinstance(item, Skipped)]:
        _promise(skipped.path == path and bool(skipped.reason), "what is left out names the file and the reason")
    for document in documents:
        _promise(isinstance(document, Document), "read() gives Document and Skipped objects")
        _promise(document.path == path, "a document names the file it came from")
        _promise(bool(document.text.strip()), "a document's text is never blank")
        _promise("\r" not in document.text and "\0" not in document.text, "lines end with a newline alone")
        _check_turns(document)
    _promise(list(found) == list(source.read(path, data)), "reading the same bytes again gives the same documents")
    with _expecting(NotTextError, "bytes without text raise NotTextError"):
        source.read(path, b"")


def _check_turns(document: Document) -> None:
    """Check that a conversation can be learned from: somebody asks, the assistant answers, and nobody is silent."""
    if not document.turns:
        return
    roles = [turn.role for turn in document.turns]
    _promise(set(roles) <= {"system", "user", "assistant"}, "a turn's role is system, user or assistant")
    _promise(
        roles[0] != "assistant" and roles[-1] == "assistant", "a conversation ends, and does not begin, with an answer"
    )
    _promise(all(turn.content.strip() for turn in document.turns), "a turn is never blank")
    whole = Document.conversation(document.path, document.turns, size=document.size)
    _promise(document == whole, "a conversation's text is what its turns say (make it with Document.conversation)")


def _check_form(rule: MergeRule) -> None:
    """Check that adapters come out as they went in, and that the inputs stay as they are."""
    _promise(isinstance(rule, MergeRule), "a rule has a name and start()")
    community = random_adapter()
    before = community.to_bytes()
    deltas = [random_delta(seed=seed) for seed in range(3)]
    copies = [[(f.a.copy(), f.b.copy()) for f in delta.modules.values()] for delta in deltas]
    merged = _run(rule, community, [(delta, 1.0) for delta in deltas])
    _promise(community.to_bytes() == before, "a merge does not alter the community adapter")
    for delta, copy in zip(deltas, copies, strict=True):
        same = all(
            np.array_equal(f.a, a) and np.array_equal(f.b, b)
            for f, (a, b) in zip(delta.modules.values(), copy, strict=True)
        )
        _promise(same, "a merge does not alter the updates")
    adapter = merged.adapter
    same_form = (adapter.rank, adapter.alpha, adapter.base_sha256, adapter.shapes) == (
        community.rank,
        community.alpha,
        community.base_sha256,
        community.shapes,
    )
    _promise(same_form, "the next adapter has the community's rank, alpha, base and modules")
    _promise(
        all(f.a.dtype == np.float32 and f.b.dtype == np.float32 for f in adapter.modules.values()),
        "factors are float32",
    )
    _promise(from_bytes(adapter.to_bytes()).shapes == adapter.shapes, "the next adapter is finite and can be read back")
    report = merged.report
    _promise(report.updates == len(deltas), "the report counts the updates")
    _promise(abs(sum(report.weights) - 1.0) < 1e-9, "the report's weights sum to 1")
    shares = report.released_energy + report.carried_energy + report.discarded_energy
    _promise(abs(shares - 1.0) < 1e-6, "the report's energies sum to 1")
    _run(rule, adapter, [(deltas[0], 1.0)], merged.carry)


def _check_fixed_point(rule: MergeRule) -> None:
    """Check that devices that learned nothing change nothing."""
    community = random_adapter()
    still = Delta(
        rank=community.rank,
        modules={
            name: LoraFactors(a=np.zeros_like(f.a), b=np.zeros_like(f.b)) for name, f in community.modules.items()
        },
    )
    merged = _run(rule, community, [(still, 1.0), (still, 3.0)])
    for name, factors in community.modules.items():
        after = merged.adapter.modules[name]
        _promise(
            bool(np.allclose(after.b @ after.a, factors.b @ factors.a, atol=1e-4)),
            f"updates of zero leave the product of {name} as it was",
        )
    fresh = initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=1, base_sha256="cd" * 32)
    _run(rule, fresh, [(still, 1.0)])


def _check_determinism(rule: MergeRule) -> None:
    """Check that the same updates give the same bytes in whatever order they arrived."""
    community = random_adapter()
    updates = {f"device-{seed}": _reader(random_delta(seed=seed), float(seed + 1)) for seed in range(5)}
    first = merge(rule, community, updates)
    second = merge(rule, community, dict(reversed(updates.items())))
    _promise(
        first.adapter.to_bytes() == second.adapter.to_bytes() and first.carry == second.carry,
        "the same updates give the same bytes",
    )


def _check_weights(rule: MergeRule) -> None:
    """Check that only shares of weight count."""
    community = random_adapter()
    deltas = [random_delta(seed=seed) for seed in range(3)]
    light = _run(rule, community, [(delta, 1.0 + index) for index, delta in enumerate(deltas)])
    heavy = _run(rule, community, [(delta, 1000.0 * (1.0 + index)) for index, delta in enumerate(deltas)])
    for name, factors in light.adapter.modules.items():
        other = heavy.adapter.modules[name]
        _promise(
            bool(np.allclose(factors.b @ factors.a, other.b @ other.a, atol=1e-4)),
            "multiplying all weights by a number changes nothing",
        )


def _check_refusals(rule: MergeRule) -> None:
    """Check that what cannot be merged is refused as a MergeError."""
    community = random_adapter()
    with _expecting(MergeError, "a merge of no updates is refused"):
        rule.start(community).finish()
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with _expecting(MergeError, f"a weight of {weight} is refused"):
            rule.start(community).add(random_delta(), weight)
    with _expecting(MergeError, "a rank above the community's is refused"):
        rule.start(community).add(random_delta(rank=5), 1.0)
    stranger = {ModulePath("model.layers.9.mlp.up_proj"): (20, 12)}
    with _expecting(MergeError, "an unknown module is refused"):
        rule.start(community).add(random_delta(shapes=stranger), 1.0)
    wrong = {**SMALL_SHAPES, ModulePath("model.layers.1.mlp.up_proj"): (20, 16)}
    with _expecting(MergeError, "a wrong shape is refused"):
        rule.start(community).add(random_delta(shapes=wrong), 1.0)
    with _expecting(MergeError, "a number that is not finite is refused"):
        rule.start(community).add(random_delta(size=float("nan")), 1.0)
    with _expecting(MergeError, "a carry of something else is refused"):
        rule.start(community, b"\x01 no carry of any rule")


def _check_memory(rule: MergeRule) -> None:
    """Check that memory does not grow with the number of devices."""
    community = random_adapter()
    accumulator = rule.start(community)
    held = []
    tracemalloc.start()
    try:
        for seed in range(120):
            accumulator.add(random_delta(seed=seed), 1.0)
            if seed in (59, 119):
                held.append(tracemalloc.get_traced_memory()[0])
        accumulator.finish()
    finally:
        tracemalloc.stop()
    one = 4 * random_delta().parameter_count
    _promise(held[1] - held[0] < 20 * one, "memory does not grow with the number of updates")


def _run(rule: MergeRule, community: Adapter, updates: list[tuple[Delta, float]], carry: bytes = b"") -> Merged:
    accumulator = rule.start(community, carry)
    for delta, weight in updates:
        accumulator.add(delta, weight)
    return accumulator.finish()


def _reader(delta: Delta, weight: float) -> Callable[[], tuple[Delta, float]]:
    return lambda: (delta, weight)


def _promise(kept: bool, promise: str) -> None:  # noqa: FBT001
    if not kept:
        raise BrokenPromiseError(f"broken promise: {promise}")


@contextmanager
def _expecting(error: type[Exception], promise: str) -> Iterator[None]:
    """Check that the body raises this error and no other."""
    try:
        yield
    except error:
        return
    except Exception as cause:
        raise BrokenPromiseError(f"broken promise: {promise} (raised {type(cause).__name__}: {cause})") from cause
    raise BrokenPromiseError(f"broken promise: {promise}")
