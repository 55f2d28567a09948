"""What is trained is what llama.cpp runs: the same losses on the same tokens."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agent.data.packing import WindowSet
from agent.llm.adapter import Adapter, read_adapter
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import GgufModel, open_gguf, target_modules
from agent.llm.runtime import Runtime
from agent.llm.seedling import SEEDLING_PATH, SEEDLING_SHA256
from agent.training.attention import Segments
from agent.training.batches import pass_of
from agent.training.decoder import Decoder, Pass
from agent.training.job import TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import put_on
from agent.training.trainer import train
from tests.models import BLOCK_TYPES, SHAPES, Shape, quantise, random_adapter, write_model

Losses: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]
"""Nats a token of each window."""

Tokens: TypeAlias = NDArray[np.uint32]
"""Windows, ``(count, length)``."""

CONTEXT = 256
COUNT, LENGTH = 5, 80
TOLERANCES = {"F32": 0.005, "F16": 0.01, "BF16": 0.01, "Q8_0": 0.01}
OTHERWISE = 0.03
BFLOAT16_TOLERANCE = 0.02
WINDOW_TOLERANCE = 0.003
"""For F32, each window by itself: what is computed otherwise shows there first, as means even it out."""

VARIANTS = {
    **{name: (name, shape) for name, shape in SHAPES.items()},
    "llama, all biases": ("llama", Shape(biases=True, tied=False, kv_heads=4)),
    "llama, factors": ("llama", Shape(rope_factors=True, kv_heads=1)),
    **{f"{name}, linear": (name, dataclasses.replace(shape, scaling="linear")) for name, shape in SHAPES.items()},
    **{f"{name}, yarn": (name, dataclasses.replace(shape, scaling="yarn")) for name, shape in SHAPES.items()},
    "llama, separate head": ("llama", Shape(tied=False)),
    "qwen2, separate head": ("qwen2", Shape(tied=False, kv_heads=1)),
    "qwen3, biases": ("qwen3", Shape(biases=True, kv_heads=4, tied=False)),
    "gemma3, no window": ("gemma3", Shape(biases=True)),
    "gemma3, seven layers": ("gemma3", Shape(layers=7, ffn=256, window=16, tied=False)),
    "gemma3, window of one": ("gemma3", Shape(window=1, period=2)),
    "phi3, plain": ("phi3", Shape(biases=True, window=16)),
    "phi3, long context": ("phi3", dataclasses.replace(SHAPES["phi3"], original_context=128)),
    "phi3, one key head": ("phi3", dataclasses.replace(SHAPES["phi3"], kv_heads=1)),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], GgufModel]:
    """Give the base of a variant in some blocks; each is written once."""
    folder = tmp_path_factory.mktemp("parity")

    @functools.cache
    def base(variant: str, blocks: str) -> GgufModel:
        if blocks != "F32":
            path = folder / f"{variant} {blocks}.gguf"
            return open_gguf(quantise(base(variant, "F32").path, path, BLOCK_TYPES[blocks]))
        architecture, shape = VARIANTS[variant]
        return open_gguf(write_model(folder / f"{variant}.gguf", shape, architecture))

    return base


def some_windows(vocab: int) -> Tokens:
    return np.random.default_rng(7).integers(0, vocab, (COUNT, LENGTH + 1)).astype(np.uint32)


def adapter_for(base: GgufModel) -> Adapter:
    names = sorted({path.rsplit(".", 1)[-1] for path in target_modules(base)})
    return random_adapter(base, rank=4, alpha=8.0, names=names)


def llama_cpp_losses(
    base: GgufModel, adapter: Adapter | Path | None, folder: Path, tokens: Tokens | None = None
) -> Losses:
    if isinstance(adapter, Adapter):
        write_gguf_adapter(adapter, base, folder / "adapter.gguf")
        adapter = folder / "adapter.gguf"
    with Runtime(base_path=base.path, n_ctx=CONTEXT, n_threads=1) as runtime:
        runtime.use([] if adapter is None else [(runtime.load_adapter(adapter), 1.0)])
        losses = runtime.losses(some_windows(base.config.vocab) if tokens is None else tokens)
    return losses.nll / losses.targets


def our_losses(
    base: GgufModel,
    adapter: Adapter | None = None,
    compute: torch.dtype = torch.float32,
    tokens: Tokens | None = None,
) -> Losses:
    model = Decoder(base, compute=compute, context=CONTEXT)
    if adapter is not None:
        put_on(model, adapter)
    windows = [
        WindowSet.plain(window[None]) for window in (some_windows(base.config.vocab) if tokens is None else tokens)
    ]
    with torch.inference_mode():
        return np.array([model.loss(pass_of(window)).item() / window.counted for window in windows])


def check(ours: Losses, theirs: Losses, blocks: str) -> None:
    assert np.isfinite(theirs).all()
    assert abs(ours.mean() - theirs.mean()) < TOLERANCES.get(blocks, OTHERWISE)
    if blocks == "F32":
        assert np.abs(ours - theirs).max() < WINDOW_TOLERANCE


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("blocks", BLOCK_TYPES)
@pytest.mark.parametrize("architecture", SHAPES)
def test_every_architecture_in_every_block_type_has_the_loss_of_llama_cpp(
    base_of: Callable[[str, str], GgufModel], tmp_path: Path, architecture: str, blocks: str, *, adapted: bool
) -> None:
    base = base_of(architecture, blocks)
    adapter = adapter_for(base) if adapted else None
    check(our_losses(base, adapter), llama_cpp_losses(base, adapter, tmp_path), blocks)


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in SHAPES])
def test_every_variant_has_the_loss_of_llama_cpp(
    base_of: Callable[[str, str], GgufModel], tmp_path: Path, variant: str, *, adapted: bool
) -> None:
    base = base_of(variant, "F32")
    adapter = adapter_for(base) if adapted else None
    check(our_losses(base, adapter), llama_cpp_losses(base, adapter, tmp_path), "F32")


@pytest.mark.parametrize("blocks", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("architecture", SHAPES)
def test_in_bfloat16_the_loss_is_still_that_of_llama_cpp(
    base_of: Callable[[str, str], GgufModel], tmp_path: Path, architecture: str, blocks: str
) -> None:
    base = base_of(architecture, blocks)
    ours, theirs = our_losses(base, compute=torch.bfloat16), llama_cpp_losses(base, None, tmp_path)
    assert abs(ours.mean() - theirs.mean()) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize("architecture", SHAPES)
def test_windows_that_share_a_pass_do_not_see_one_another(
    base_of: Callable[[str, str], GgufModel], tmp_path: Path, architecture: str
) -> None:
    base = base_of(architecture, "F32")
    windows = torch.from_numpy(some_windows(base.config.vocab).astype(np.int64))
    bounds = [(at * LENGTH, (at + 1) * LENGTH) for at in range(len(windows))]
    given = Pass(windows[:, :-1].reshape(-1), Segments(bounds), windows[:, 1:].reshape(-1))
    with torch.inference_mode():
        together = Decoder(base, context=CONTEXT).loss(given).item() / given.tokens.numel()
    assert together == pytest.approx(llama_cpp_losses(base, None, tmp_path).mean(), abs=0.001)


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_a_model_that_this_project_did_not_make_has_the_loss_of_llama_cpp(
    stories: Path, tmp_path: Path, *, adapted: bool
) -> None:
    base = open_gguf(stories)
    adapter = adapter_for(base) if adapted else None
    check(our_losses(base, adapter), llama_cpp_losses(base, adapter, tmp_path), "F32")


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("gemma3", "sliding_window"),
        ("gemma3", "sliding_rope_base"),
        ("gemma3", "attention_scale"),
        ("gemma3", "activation"),
        ("llama, linear", "factor"),
        ("qwen3, yarn", "factor"),
        ("phi3", "original_context"),
        ("phi3", "magnitude"),
        ("qwen2", "base"),
    ],
)
def test_the_comparison_notices_what_is_computed_otherwise(
    base_of: Callable[[str, str], GgufModel], variant: str, change: str
) -> None:
    base = base_of(variant, "F32")
    config = base.config
    rope = {"factor": 3.5, "original_context": 128, "magnitude": 1.0, "base": 20_000.0}
    others = {"sliding_window": 25, "sliding_rope_base": 1e6, "attention_scale": 0.1, "activation": "silu"}
    changed = (
        dataclasses.replace(config, rope=dataclasses.replace(config.rope, **{change: rope[change]}))
        if change in rope
        else dataclasses.replace(config, **{change: others[change]})
    )
    right, wrong = our_losses(base), our_losses(dataclasses.replace(base, config=changed))
    assert np.abs(right - wrong).max() > WINDOW_TOLERANCE


@pytest.mark.parametrize("name", ["q_proj", "k_proj"])
def test_rotary_layers_are_adapted_in_the_right_row_order(tiny_f32: Path, tmp_path: Path, name: str) -> None:
    base = open_gguf(tiny_f32)
    adapter = random_adapter(base, rank=8, alpha=8.0, names=[name], size=0.4)
    adapted = our_losses(base, adapter)
    check(adapted, llama_cpp_losses(base, adapter, tmp_path), "F32")
    assert np.abs(adapted - our_losses(base)).max() > 0.1


def test_plain_peft_on_a_real_model_computes_the_same(stories: Path, tmp_path: Path) -> None:
    from tests.training.peers import peer_loss, peft_of  # noqa: PLC0415 - seconds of imports

    base = open_gguf(stories)
    with Runtime(base_path=base.path, n_ctx=128, n_threads=1) as runtime:
        text = "Tom and his dog ran to the big tree. The dog was happy. Tom said, thank you! " * 4
        tokens = np.array([[1, *runtime.tokenize(text)][:120]], dtype=np.uint32)
    adapter = adapter_for(base)
    windows = WindowSet.plain(tokens)
    with torch.inference_mode():
        loss = peer_loss(peft_of(base, adapter, tmp_path / "peft"), windows).item() / windows.counted
    assert loss == pytest.approx(llama_cpp_losses(base, adapter, tmp_path, tokens).mean(), abs=0.005)
    assert loss == pytest.approx(our_losses(base, adapter, tokens=tokens).mean(), abs=0.0001)
    assert abs(loss - our_losses(base, tokens=tokens).mean()) > 0.02


def test_what_the_seedling_learns_is_the_same_in_peft_and_in_llama_cpp(tmp_path: Path) -> None:
    base = open_gguf(SEEDLING_PATH)
    with Runtime(base_path=base.path, n_ctx=128, n_threads=1) as runtime:
        text = "\n\n".join(inspect.getdoc(thing) or "" for thing in (argparse.ArgumentParser, dict, str, textwrap.wrap))
        ids = runtime.tokenize(text)
    tokens = np.array(ids[: len(ids) // 64 * 64], dtype=np.uint32).reshape(-1, 64)
    np.savez(tmp_path / "windows.npz", tokens=tokens)
    job = TrainJob(
        base_path=base.path,
        base_sha256=SEEDLING_SHA256,
        windows_path=tmp_path / "windows.npz",
        steps=10,
        batch_size=4,
        learning_rate=1e-2,
        checkpoint_dir=tmp_path / "checkpoint",
        out_dir=tmp_path / "out",
    )
    result = train(job, lambda _: None, Leaving())
    plain = our_losses(base, tokens=tokens).mean()
    learnt = our_losses(base, read_adapter(result.peft_path), tokens=tokens).mean()
    assert learnt < plain - 0.5
    assert llama_cpp_losses(base, None, tmp_path, tokens).mean() == pytest.approx(plain, abs=0.01)
    assert llama_cpp_losses(base, result.gguf_path, tmp_path, tokens).mean() == pytest.approx(learnt, abs=0.01)
