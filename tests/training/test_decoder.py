"""The decoder's losses and gradients: by transformers and PEFT, and by itself in other ways."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.data.packing import WindowSet
from agent.llm.adapter import Adapter
from agent.llm.gguf_file import GgufModel, open_gguf, target_modules
from agent.training import footprint as footprint_module
from agent.training import packed as packed_module
from agent.training.batches import pass_of
from agent.training.compute import resolve_compute
from agent.training.decoder import Decoder
from agent.training.lora import LoraModel, put_on
from agent.training.packed import PackedWeight, Scratch
from tests.models import BLOCK_TYPES, SHAPES, Shape, quantise, random_adapter, write_model
from tests.training.gradients import backward

Pair = tuple[Tensor, Tensor]
BaseOf = Callable[..., GgufModel]

VARIANTS = {
    **{name: (name, shape) for name, shape in SHAPES.items()},
    "llama, all biases": ("llama", Shape(biases=True, tied=False, kv_heads=4, rope_factors=True)),
    "qwen3, three layers": ("qwen3", Shape(heads=8, kv_heads=1, layers=3, ffn=256)),
    "gemma3, three layers": ("gemma3", Shape(heads=2, kv_heads=2, layers=3, ffn=256, window=5, period=3)),
    "phi3, long context": ("phi3", dataclasses.replace(SHAPES["phi3"], original_context=24)),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> BaseOf:
    """Give the base of a variant; each is written once."""
    folder = tmp_path_factory.mktemp("decoder")

    @functools.cache
    def base(variant: str, blocks: str = "F32") -> GgufModel:
        if blocks != "F32":
            path = folder / f"{variant}-{blocks}.gguf"
            return open_gguf(quantise(base(variant).path, path, BLOCK_TYPES[blocks]))
        architecture, shape = VARIANTS[variant]
        return open_gguf(write_model(folder / f"{variant}.gguf", shape, architecture))

    return base


class Document(NamedTuple):
    """Tokens, uint32 ``(n,)``, and which of them count, bool ``(n,)``."""

    tokens: NDArray[np.uint32]
    targets: NDArray[np.bool_]


def documents(*lengths: int, vocab: int = 300, seed: int = 4) -> list[Document]:
    """Give documents of random tokens, of which some do not count."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        targets = rng.random(length) < 0.7
        targets[:2] = False, True
        found.append(Document(rng.integers(0, vocab, length).astype(np.uint32), targets))
    return found


def side_by_side(*rows: Sequence[Document], window: int = 48) -> WindowSet:
    """Give a window for each row of documents; what they leave is padding."""
    shape = (len(rows), window)
    made = WindowSet(np.full(shape, 7, np.uint32), np.zeros(shape, np.bool_), np.zeros(shape, np.uint16))
    for row, several in enumerate(rows):
        at = 0
        for number, document in enumerate(several):
            here = slice(at, at + len(document.tokens))
            made.tokens[row, here], made.targets[row, here] = document
            made.segments[row, here] = number
            at = here.stop
        made.segments[row, at:] = len(several)
    return made


def packed_windows(vocab: int = 300) -> WindowSet:
    """Give two windows of 48 tokens with three documents, of which not everything counts, and padding."""
    one, two, three = documents(30, 15, 40, vocab=vocab)
    return side_by_side([one, two], [three])


def plain_windows(count: int = 4, length: int = 33, seed: int = 3) -> WindowSet:
    return WindowSet.plain(np.random.default_rng(seed).integers(0, 300, (count, length)).astype(np.uint32))


def adapter_for(base: GgufModel, *, size: float = 0.1, names: list[str] | None = None) -> Adapter:
    every = sorted({path.rsplit(".", 1)[-1] for path in target_modules(base)})
    return random_adapter(base, rank=4, alpha=8.0, names=names or every, size=size)


def with_adapter(base: GgufModel, adapter: Adapter, *, context: int = 48, **settings: object) -> LoraModel:
    return put_on(Decoder(base, context=context, **settings), adapter)  # type: ignore[arg-type]


def gradients(lora: LoraModel) -> dict[str, Pair]:
    """Give the gradients of A and B of each layer, by its path."""
    found: dict[str, Pair] = {}
    for projection in lora._projections:
        assert projection.a is not None
        assert projection.a.grad is not None
        changed = [layer for layer in projection.layers if layer.b is not None]
        for place, layer in enumerate(changed):
            assert layer.b is not None
            assert layer.b.grad is not None
            rows = projection.a.grad[place * projection.rank : (place + 1) * projection.rank]
            found[layer.path] = (rows.clone(), layer.b.grad.clone())
    return found


def learnt(lora: LoraModel, windows: WindowSet, *parts: slice) -> tuple[float, dict[str, Pair]]:
    """Give the mean loss of windows, taken in parts, and the gradients by the adapter."""
    for parameter in lora.parameters():
        parameter.grad = None
    total = 0.0
    for part in parts or (slice(None),):
        loss = lora.packed.loss(pass_of(windows.take(part))) / windows.counted
        backward(loss)
        total += loss.item()
    return total, gradients(lora)


def assert_alike(found: dict[str, Pair], expected: dict[str, Pair], tolerance: float) -> None:
    """Check every gradient, by how large the gradients of its layer are."""
    assert found.keys() == expected.keys()
    for path, pair in expected.items():
        for name, ours, theirs in zip("AB", found[path], pair, strict=True):
            size = float(theirs.norm())
            assert size > 0, f"{path} {name} has nothing to learn"
            assert float((ours - theirs).norm()) <= tolerance * size, f"{path} {name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_all_gradients_are_those_of_transformers_and_peft(
    base_of: BaseOf, tmp_path: Path, variant: str
) -> None:
    from tests.training.peers import peer_factors, peer_loss, peft_of  # noqa: PLC0415 - seconds of imports

    base = base_of(variant)
    windows, adapter = packed_windows(base.config.vocab), adapter_for(base)
    if variant == "phi3, long context":  # transformers decides by the sequence in hand which factors it needs
        windows = side_by_side(*([document] for document in documents(40, 41, vocab=base.config.vocab)))
    loss, found = learnt(with_adapter(base, adapter), windows)
    peer = peft_of(base, adapter, tmp_path)
    expected = peer_loss(peer, windows) / windows.counted
    backward(expected)
    theirs = {
        path: (a.grad, b.grad)
        for path, (a, b) in peer_factors(peer).items()
        if a.grad is not None and b.grad is not None
    }
    assert set(theirs) == set(target_modules(base))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_alike(found, theirs, 2e-4)


@pytest.mark.parametrize("variant", SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_bfloat16_learns_nearly_the_same(base_of: BaseOf, variant: str, *, checkpointing: bool) -> None:
    base = base_of(variant, "Q8_0")
    adapter, windows = adapter_for(base), plain_windows()
    exact, expected = learnt(with_adapter(base, adapter), windows)
    lora = with_adapter(base, adapter, compute=torch.bfloat16)
    lora.packed.checkpointing = checkpointing
    loss, found = learnt(lora, windows)
    assert loss == pytest.approx(exact, abs=0.02)
    assert_alike(found, expected, 0.08)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["gemma3", "phi3"])
def test_computing_again_gives_the_very_same_gradients(base_of: BaseOf, variant: str, compute: torch.dtype) -> None:
    lora = with_adapter(base_of(variant), adapter_for(base_of(variant)), compute=compute)
    loss, expected = learnt(lora, packed_windows())
    lora.packed.checkpointing = True
    again, found = learnt(lora, packed_windows())
    assert again == loss
    assert_alike(found, expected, 0.0)


def test_computing_again_keeps_less_for_the_backward_pass(base_of: BaseOf) -> None:
    lora = with_adapter(base_of("llama"), adapter_for(base_of("llama")))
    arena = lora.packed._scratch.arena
    kept = []
    for checkpointing in (False, True):
        lora.packed.checkpointing = checkpointing
        loss = lora.packed.loss(pass_of(plain_windows()))
        kept.append(arena.mark()[1])
        backward(loss)
        assert arena.mark()[1] == kept[-1], "what was computed again is given back"
    rows, hidden = 4 * 32, base_of("llama").config.hidden
    assert kept[1] == (2 * rows * hidden + rows * hidden + rows) * 4, "the input of each of two layers, and a norm"
    assert kept[1] < kept[0] / 4


def test_what_is_kept_lies_where_that_of_the_pass_before_lay(base_of: BaseOf) -> None:
    lora = with_adapter(base_of("gemma3"), adapter_for(base_of("gemma3")))
    marks = []
    for _ in range(3):
        learnt(lora, plain_windows())
        marks.append(lora.packed._scratch.arena.mark())
    assert len(set(marks)) == 1
    with torch.no_grad():
        lora.packed.loss(pass_of(plain_windows()))
    assert lora.packed._scratch.arena.mark() == marks[0], "without gradients nothing is kept"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_two_passes_at_once_only_the_second_can_be_learnt_from(base_of: BaseOf, *, checkpointing: bool) -> None:
    lora = with_adapter(base_of("llama"), adapter_for(base_of("llama")))
    lora.packed.checkpointing = checkpointing
    _, expected = learnt(lora, plain_windows())
    first, second = (lora.packed.loss(pass_of(plain_windows())) for _ in range(2))
    with pytest.raises(RuntimeError, match="another pass"):
        backward(first)
    for parameter in lora.parameters():
        parameter.grad = None
    backward(second / plain_windows().counted)
    assert_alike(gradients(lora), expected, 1e-6)


def test_several_passes_add_up_to_the_step_however_unevenly_they_count(base_of: BaseOf) -> None:
    windows = plain_windows(count=5)
    windows.targets[0] = False
    windows.targets[1, 3:] = False
    windows.targets[3, ::2] = False
    lora = with_adapter(base_of("qwen2"), adapter_for(base_of("qwen2")))
    loss, expected = learnt(lora, windows)
    for size in (1, 2, 3):
        parts = [slice(first, first + size) for first in range(0, 5, size)]
        split, found = learnt(lora, windows, *(part for part in parts if windows.take(part).counted))
        assert split == pytest.approx(loss, rel=1e-6)
        assert_alike(found, expected, 1e-5)


@pytest.mark.parametrize("variant", SHAPES)
def test_documents_side_by_side_have_the_losses_that_each_has_alone(base_of: BaseOf, variant: str) -> None:
    pieces = documents(30, 15, 40, 2, 3)
    together = side_by_side(pieces[:2], pieces[2:])
    model = Decoder(base_of(variant), context=48)
    alone = [model.loss(pass_of(side_by_side([piece], window=len(piece.tokens)))).item() for piece in pieces]
    assert model.loss(pass_of(together)).item() == pytest.approx(sum(alone), rel=1e-6)
    places = [(0, 0), (0, 30), (1, 0), (1, 40), (1, 42)]
    for (row, at), piece, loss in zip(places, pieces, alone, strict=True):
        only = dataclasses.replace(together, targets=np.zeros_like(together.targets))
        only.targets[row, at : at + len(piece.targets)] = piece.targets
        assert model.loss(pass_of(only)).item() == pytest.approx(loss, rel=1e-6)


def test_only_what_counts_is_learnt_from(base_of: BaseOf) -> None:
    windows = plain_windows()
    nothing = dataclasses.replace(windows, targets=np.zeros_like(windows.targets))
    assert Decoder(base_of("llama")).loss(pass_of(nothing)).item() == 0.0


def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of frozen weights as they are unpacked."""
    names: list[str] = []
    rows = Scratch._rows

    def noting(self: Scratch, weight: PackedWeight, first: int, last: int, *, at: int) -> Tensor:
        names.append(weight.tensor.name)
        return rows(self, weight, first, last, at=at)

    monkeypatch.setattr(Scratch, "_rows", noting)
    return names


@pytest.mark.parametrize(
    ("names", "last", "backward_uses"),
    [
        (["q_proj", "v_proj", "down_proj"], 1, {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
        (["gate_proj"], 1, {"ffn_down"}),
        (["down_proj"], 1, set()),
        (["o_proj"], 1, {"ffn_gate", "ffn_up", "ffn_down"}),
    ],
)
def test_with_adapters_on_the_last_layers_nothing_is_computed_backward_below(
    base_of: BaseOf, monkeypatch: pytest.MonkeyPatch, names: list[str], last: int, backward_uses: set[str]
) -> None:
    base = base_of("qwen3, three layers")
    model = Decoder(base, context=48)
    lora = LoraModel(
        model=model, rank=4, alpha=8.0, target_modules=names, base_sha256="0" * 64, last_layers=last, seed=3
    )
    assert {path.split(".")[2] for path in lora.extract().modules} == {"2"}
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.normal_(std=0.1)
    seen = used(monkeypatch)
    loss = model.loss(pass_of(plain_windows()))
    assert {name.split(".")[1] for name in seen if name.startswith("blk")} == {"0", "1", "2"}
    seen.clear()
    backward(loss)
    assert set(seen) == {f"blk.2.{name}.weight" for name in backward_uses}
    # and what flows is what flows when all layers are looked through
    everything = with_adapter(base, adapter_for(base, size=0.0))
    with torch.no_grad():
        for path, a, b in everything._factors():
            if path in lora.extract().modules:
                a.copy_(torch.from_numpy(lora.extract().modules[path].a))
                b.copy_(torch.from_numpy(lora.extract().modules[path].b))
    _, expected = learnt(everything, plain_windows())
    counted = plain_windows().counted
    found = {path: (a / counted, b / counted) for path, (a, b) in gradients(lora).items()}
    assert_alike(found, {path: expected[path] for path in found}, 1e-5)


@pytest.mark.parametrize(("variant", "downs"), [("llama", 1), ("gemma3", 2)])
def test_the_last_product_of_a_block_is_computed_again_only_for_a_norm_behind_it(
    base_of: BaseOf, monkeypatch: pytest.MonkeyPatch, variant: str, downs: int
) -> None:
    lora = with_adapter(base_of(variant), adapter_for(base_of(variant)))
    lora.packed.checkpointing = True
    loss = lora.packed.loss(pass_of(plain_windows()))
    seen = used(monkeypatch)
    backward(loss)
    assert seen.count("blk.1.ffn_down.weight") == downs
    assert seen.count("blk.1.ffn_up.weight") == 2, "once forward again, once backward"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_below_the_lowest_adapted_layer_nothing_is_kept(base_of: BaseOf, *, checkpointing: bool) -> None:
    kept = []
    for last in (1, 2, 3):
        model = Decoder(base_of("qwen3, three layers"), context=48)
        model.checkpointing = checkpointing
        LoraModel(model=model, rank=4, alpha=8.0, target_modules=["q_proj"], base_sha256="0" * 64, last_layers=last)
        model.loss(pass_of(plain_windows()))
        kept.append(model._scratch.arena.mark()[1])
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


@pytest.mark.parametrize("variant", SHAPES)
def test_the_trunk_and_the_layers_above_it_are_the_whole_model(base_of: BaseOf, variant: str) -> None:
    model, given = Decoder(base_of(variant), context=48), pass_of(packed_windows())
    with torch.no_grad():
        trunk = model.hidden(given, last=1)
        assert torch.equal(model.hidden(given, trunk=trunk, first=1), model.hidden(given))
        assert model.loss(given, trunk=trunk, first=1) == model.loss(given)


@pytest.mark.parametrize("variant", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize("rows", [1, 13, 200])
def test_pieces_smaller_than_a_layer_change_nothing(
    base_of: BaseOf, monkeypatch: pytest.MonkeyPatch, variant: str, rows: int
) -> None:
    base = base_of(variant)
    expected_loss, expected = learnt(with_adapter(base, adapter_for(base)), plain_windows())
    monkeypatch.setattr(footprint_module, "LARGEST_LAYER_PIECE", rows * base.config.ffn)
    monkeypatch.setattr(footprint_module, "LARGEST_HEAD", 0)
    small = with_adapter(base, adapter_for(base))
    assert small.packed._scratch.elements == rows * base.config.ffn
    loss, found = learnt(small, plain_windows())
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_alike(found, expected, 1e-5)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_threads_that_unpack_together_change_nothing(
    base_of: BaseOf, compute: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "_PARALLEL_ELEMENTS", 1)
    monkeypatch.setattr(packed_module, "_PART_ELEMENTS", 5000)
    base = base_of("llama", "Q8_0")
    results = [
        learnt(with_adapter(base, adapter_for(base), compute=compute, threads=threads), plain_windows())
        for threads in (1, 3)
    ]
    assert results[0][0] == results[1][0]
    assert_alike(results[1][1], results[0][1], 0.0)


def test_a_computation_can_be_left_at_any_use_and_done_again(base_of: BaseOf) -> None:
    base = base_of("llama")
    left = [10**9]

    def look() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise InterruptedError

    lora = with_adapter(base, adapter_for(base), before_use=look)
    expected_loss, expected = learnt(lora, plain_windows())
    uses = 10**9 - left[0]
    for checkpointing in (False, True):
        lora.packed.checkpointing = checkpointing
        for at in range(1, uses + 1, 3):
            left[0] = at
            with pytest.raises(InterruptedError):
                learnt(lora, plain_windows())
        left[0] = 10**9
        loss, found = learnt(lora, plain_windows())
        assert loss == expected_loss
        assert_alike(found, expected, 0.0)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_a_step_looks_up_so_often_that_a_long_one_is_left_soon(
    base_of: BaseOf, monkeypatch: pytest.MonkeyPatch, *, checkpointing: bool
) -> None:
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - imports what nothing else here needs

    monkeypatch.setattr(footprint_module, "LOGIT_BYTES", 4 * 320 * 64)  # 64 positions at a time
    counter = FlopCounterMode(display=False)
    looks = [0]
    lora = with_adapter(
        base_of("llama"), adapter_for(base_of("llama")), before_use=lambda: looks.append(counter.get_total_flops())
    )
    lora.packed.checkpointing = checkpointing
    with counter:
        learnt(lora, plain_windows(count=16, length=65))
    looks.append(counter.get_total_flops())
    config = base_of("llama").config
    largest = 2 * 2 * 16 * 64 * config.hidden * config.ffn  # gate and up of all rows at once
    stretches = np.diff(looks)
    assert len(stretches) > 40
    assert stretches.max() < 2 * largest, "no more between two looks than one projection and its adapter"


def test_it_keeps_no_weights_unpacked(base_of: BaseOf) -> None:
    import gc  # noqa: PLC0415 - for this look alone

    def tensors() -> dict[int, Tensor]:
        return {id(thing): thing for thing in gc.get_objects() if type(thing) is Tensor}

    base = base_of("llama", "Q8_0")
    before = tensors()
    model = Decoder(base, context=48)
    new = [tensor for key, tensor in tensors().items() if key not in before]
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in new}
    norms = 5 * base.config.hidden * (4 + 2)  # in both types
    assert 0 < sum(sizes.values()) <= 4 * model._scratch.elements + norms


def test_automatic_compute_picks_one_that_exists() -> None:
    assert resolve_compute("auto") in {torch.float32, torch.bfloat16}
    assert resolve_compute("bfloat16") == torch.bfloat16
