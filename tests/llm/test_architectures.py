from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from agent.llm.architectures import ARCHITECTURES, supported
from agent.llm.gguf_file import open_gguf, target_modules
from agent.llm.runtime import Runtime
from tests.models import BLOCK_TYPES, SHAPES, Shape, quantise, rewritten, write_model

VARIANTS = {
    **{name: (name, shape) for name, shape in SHAPES.items()},
    "llama with biases": ("llama", Shape(biases=True, tied=False)),
    "llama with factors": ("llama", Shape(rope_factors=True, kv_heads=4)),
    "llama, linear": ("llama", Shape(scaling="linear")),
    "llama, yarn": ("llama", Shape(scaling="yarn")),
    "qwen2 without biases": ("qwen2", Shape(kv_heads=1)),
    "qwen3 with biases": ("qwen3", Shape(biases=True, tied=False)),
    "gemma3, seven layers": ("gemma3", Shape(layers=7, window=24)),
    "gemma3, no window": ("gemma3", Shape(biases=True, scaling="linear")),
    "phi3, plain": ("phi3", Shape(biases=True, window=16)),
}


def test_every_architecture_has_a_fixture_and_is_named_to_those_who_use_another() -> None:
    assert set(ARCHITECTURES) == set(SHAPES)
    assert all(name in supported() for name in SHAPES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_runs_what_is_accepted_here(tmp_path: Path, variant: str) -> None:
    architecture, shape = VARIANTS[variant]
    path = write_model(tmp_path / "m.gguf", shape, architecture)
    assert open_gguf(path).architecture.name == architecture
    windows = np.random.default_rng(0).integers(0, 300, (2, 65)).astype(np.uint32)
    with Runtime(base_path=path, n_ctx=128, n_threads=1) as runtime:
        losses = runtime.losses(windows)
    assert np.isfinite(losses.nll).all()
    assert 4 < losses.mean < 12


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("blocks", BLOCK_TYPES)
def test_every_block_type_is_written_and_described(tmp_path: Path, architecture: str, blocks: str) -> None:
    shape = dataclasses.replace(SHAPES[architecture], layers=1, ffn=256)
    source = write_model(tmp_path / "m.gguf", shape, architecture)
    model = open_gguf(quantise(source, tmp_path / "q.gguf", BLOCK_TYPES[blocks]))
    matrices = {t.format.name for name, t in model.tensors.items() if len(t.shape) == 2}
    assert matrices == ({"Q4_K", "Q6_K"} if blocks == "Q4_K_M" else {blocks})


def test_modules_have_the_names_and_roles_of_their_architecture(tmp_path: Path) -> None:
    base = open_gguf(write_model(tmp_path / "m.gguf", Shape(biases=True), "phi3"))
    modules = {str(path): target for path, target in target_modules(base).items()}
    assert modules["model.layers.1.self_attn.qkv_proj"] == (
        512, 256, "blk.1.attn_qkv.weight", 0, "qkv", 1, "blk.1.attn_qkv.bias",
    )  # fmt: skip
    assert modules["model.layers.0.mlp.gate_up_proj"] == (1024, 256, "blk.0.ffn_up.weight", 0, "gate_up", 0, None)
    assert len(modules) == 8
    qwen2 = target_modules(open_gguf(write_model(tmp_path / "q.gguf", architecture="qwen2")))
    biased = {target.role for target in qwen2.values() if target.bias}
    assert biased == {"q", "k", "v"}
    assert not any(target.rotary_heads for target in qwen2.values())


def test_gemma3_is_described_as_llama_cpp_computes_it(tmp_path: Path) -> None:
    config = open_gguf(write_model(tmp_path / "m.gguf", Shape(layers=13, ffn=256, window=24), "gemma3")).config
    assert [config.attention_window(layer) for layer in (0, 4, 5, 6, 11, 12)] == [24, 24, None, 24, None, 24]
    assert config.activation == "gelu"
    assert config.embedding_scale == pytest.approx(16)
    assert config.attention_scale == pytest.approx(64**-0.5)


def test_gemma3_slides_by_the_pattern_of_the_file_where_it_has_one(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", architecture="gemma3")
    for pattern, windows in (([False, True], [None, 24]), (0, [24, 24]), (2, [24, None])):
        path = rewritten(source, tmp_path / "r.gguf", **{"gemma3.attention.sliding_window_pattern": pattern})
        config = open_gguf(path).config
        assert [config.attention_window(layer) for layer in range(2)] == windows


def test_the_largest_gemma3_has_an_attention_scale_of_its_own(tmp_path: Path) -> None:
    shape = Shape(layers=62, hidden=32, ffn=32, heads=2, kv_heads=1, head_dim=8)
    config = open_gguf(write_model(tmp_path / "m.gguf", shape, "gemma3")).config
    assert config.attention_scale == pytest.approx(math.sqrt(1 / 16))


def test_sliding_layers_turn_by_their_own_base_and_are_not_stretched(tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPES["gemma3"], scaling="linear", factor=8.0)
    base = open_gguf(write_model(tmp_path / "m.gguf", shape, "gemma3"))
    assert base.rotary(0, 64).frequencies[1] == pytest.approx(10_000 ** (-2 / 64))
    assert base.rotary(1, 64).frequencies[1] == pytest.approx(1_000_000 ** (-2 / 64) / 8)


def test_windows_that_llama_cpp_does_not_apply_are_not_applied_here(tmp_path: Path) -> None:
    for architecture in ("llama", "qwen2", "qwen3", "phi3"):
        path = write_model(tmp_path / "m.gguf", Shape(window=16), architecture)
        assert open_gguf(path).config.attention_window(0) is None


def test_phi3_takes_the_long_factors_where_llama_cpp_would_for_that_context(tmp_path: Path) -> None:
    base = open_gguf(write_model(tmp_path / "m.gguf", architecture="phi3"))
    short, long = base.rotary(0, 512), base.rotary(0, 513)
    assert short.dimensions == base.config.rotary_dimensions == 48
    assert short.magnitude == pytest.approx(1.2)
    usual = 10_000 ** (-2 * np.arange(24) / 48)
    np.testing.assert_allclose(short.frequencies, usual / np.linspace(1, 1.5, 24), rtol=1e-6)
    np.testing.assert_allclose(long.frequencies, usual / np.linspace(1, 9, 24), rtol=1e-6)


def test_phi3_takes_the_long_factors_in_the_whole_of_llama_cpps_rounded_context(tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPES["phi3"], original_context=300)
    base = open_gguf(write_model(tmp_path / "m.gguf", shape, "phi3"))
    assert base.rotary(0, 256).frequencies[-1] > base.rotary(0, 257).frequencies[-1]
