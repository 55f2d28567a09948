from __future__ import annotations

import dataclasses
import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import AdapterError, BaseMismatchError, ModelError, UnreadableModelError, UnsupportedModelError
from agent.llm.gguf_file import (
    GgufModel,
    check_base,
    open_gguf,
    sha256_file,
    target_modules,
    target_shapes,
)
from tests.models import SHAPES, Shape, rewritten, write_model


def test_a_model_is_described_and_its_weights_stay_packed(tiny_q8: Path) -> None:
    model = open_gguf(tiny_q8)
    config = model.config
    assert (config.n_layers, config.hidden, config.ffn, config.n_heads, config.n_kv_heads) == (2, 256, 512, 4, 2)
    assert (config.head_dim, config.vocab, config.context_length, config.tied) == (64, 320, 512, True)
    tensor = model.tensors["blk.1.ffn_down.weight"]
    assert tensor.shape == (256, 512)
    assert tensor.format.name == "Q8_0"
    assert tensor.packed.size == 256 * 512 // 32 * 34
    assert not tensor.packed.flags.writeable
    assert "<|im_start|>" in (model.chat_template or "")


def test_target_modules_are_named_as_transformers_names_them(tiny_f32: Path) -> None:
    modules = target_modules(open_gguf(tiny_f32))
    assert len(modules) == 2 * 7
    found = {str(path): target for path, target in modules.items()}
    assert found["model.layers.1.self_attn.k_proj"] == (128, 256, "blk.1.attn_k.weight", 2, "k", 1, None)
    assert found["model.layers.0.mlp.down_proj"] == (256, 512, "blk.0.ffn_down.weight", 0, "down", 0, None)


def test_target_shapes_are_chosen_by_short_name(tiny_f32: Path) -> None:
    shapes = target_shapes(open_gguf(tiny_f32), ["q_proj", "up_proj"])
    assert sorted(shapes.values()) == [(256, 256), (256, 256), (512, 256), (512, 256)]
    with pytest.raises(AdapterError, match="qkv_proj") as caught:
        target_shapes(open_gguf(tiny_f32), ["q_proj", "qkv_proj"])
    assert "gate_proj" in caught.value.advice


def test_a_model_that_this_project_did_not_make_is_read(stories: Path) -> None:
    config = open_gguf(stories).config
    assert (config.hidden, config.ffn, config.n_layers, config.n_kv_heads, config.vocab) == (64, 172, 5, 4, 512)
    assert not config.tied


def test_a_missing_file_an_empty_one_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()
    for path in (tmp_path / "missing.gguf", empty, tmp_path):
        with pytest.raises(UnreadableModelError) as caught:
            open_gguf(path)
        assert str(path) in caught.value.message
        assert caught.value.advice


def test_an_unknown_architecture_is_named_with_those_that_are_supported(tiny_f32: Path, tmp_path: Path) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", architecture="mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba'") as caught:
        open_gguf(path)
    assert "llama" in caught.value.advice


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "gemma3.gguf", architecture="gemma3")


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "phi3.gguf", architecture="phi3")


def vector(size: int, value: float = 1.0) -> object:
    return np.full(size, value, dtype=np.float32)


UNSUPPORTED = [
    ({"llama.expert_count": 8}, "mixture of experts"),
    ({"llama.rope.scaling.type": "longrope"}, "longrope"),
    ({"llama.rope.scaling.type": "ntk"}, "ntk"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}, "stretches 512"),
    ({"llama.rope.scaling.factor": -2.0}, "by -2.0"),
    ({"llama.rope.scaling.factor": 1e-30}, r"by 1\.0\d+e-30"),
    ({"llama.rope.scaling.attn_factor": 0.0}, "their values by 0.0"),
    ({"llama.rope.freq_base": 1.0}, "not above 1"),
    ({"llama.rope.dimension_count": 32}, "part of each head"),
    ({"llama.attention.head_count_kv": [2, 4]}, "head_count_kv"),
    ({"llama.attention.head_count_kv": 3}, "key-value heads"),
    ({"llama.attention.head_count_kv": 0}, "key-value heads"),
    ({"llama.context_length": None}, "context_length"),
    ({"llama.context_length": 0}, "no context"),
    ({"llama.attention.value_length": 128}, "value heads"),
    ({"llama.attention.layer_norm_rms_epsilon": 2.0}, "epsilon"),
    ({"llama.attention.causal": False}, "looks ahead"),
    ({"llama.nextn_predict_layers": 1}, "several tokens"),
    ({"extra": {"blk.0.attn_qkv.weight": vector(256)}}, "attn_qkv"),
    ({"extra": {"output.bias": vector(320)}}, "output.bias"),
    ({"extra": {"blk.0.attn_q_norm.weight": vector(64)}}, "attn_q_norm"),
    ({"extra": {"rope_factors_long.weight": vector(32)}}, "rope_factors_long"),
    ({"extra": {"rope_freqs.weight": np.ones(32, dtype=np.float16)}}, "rope_freqs.weight as F16"),
    ({"extra": {"blk.0.ffn_norm.weight": np.ones(256, dtype=np.float16)}}, "ffn_norm.weight as F16"),
    ({"extra": {"blk.0.attn_q.weight": np.zeros((256, 256), dtype=np.int32)}}, "I32"),
    ({"general.type": "adapter"}, "of type adapter"),
    ({"split.count": 3}, "one of 3 parts"),
]


@pytest.mark.parametrize(("changes", "complaint"), UNSUPPORTED, ids=[complaint for _, complaint in UNSUPPORTED])
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tiny_f32: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnsupportedModelError, match=complaint) as caught:
        open_gguf(path)
    assert caught.value.advice


def test_a_refusal_names_what_is_supported(tiny_f32: Path, tmp_path: Path) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", **{"llama.expert_count": 8})
    with pytest.raises(UnsupportedModelError) as caught:
        open_gguf(path)
    assert "gemma3, llama, phi3, qwen2, qwen3" in caught.value.advice


UNSUPPORTED_IN_GEMMA3 = [
    ({"gemma3.final_logit_softcapping": 30.0}, "cap on its logits"),
    ({"gemma3.rope.freq_base_swa": 0.5}, "not above 1"),
    ({"gemma3.attention.sliding_window_pattern": [False, False]}, "in none of its layers"),
    ({"gemma3.attention.sliding_window_pattern": 1}, "in none of its layers"),
    ({"gemma3.attention.key_length_swa": 32}, "heads of another width"),
    ({"gemma3.rope.dimension_count_swa": 32}, "heads of another width"),
    ({"gemma3.rope.dimension_count": 32}, "part of each head"),
    ({"extra": {"blk.0.attn_output.bias": vector(256)}}, "attn_output.bias"),
    ({"extra": {"dense_2.weight": vector(256)}}, "dense_2"),
]


@pytest.mark.parametrize(
    ("changes", "complaint"), UNSUPPORTED_IN_GEMMA3, ids=[complaint for _, complaint in UNSUPPORTED_IN_GEMMA3]
)
def test_what_gemma3_does_not_have_is_refused_by_name(
    gemma3: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(gemma3, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnsupportedModelError, match=complaint):
        open_gguf(path)


DAMAGED_GEMMA3 = [
    ({"gemma3.attention.sliding_window": -1}, "-1 for gemma3.attention.sliding_window"),
    ({"gemma3.attention.sliding_window": 1 << 31}, "2147483648 for gemma3.attention.sliding_window"),
    ({"gemma3.attention.sliding_window_pattern": [True, False, True]}, "pattern of 3"),
    ({"gemma3.attention.sliding_window_pattern": ["yes", "no"]}, "not of yes and no"),
    ({"gemma3.attention.sliding_window_pattern": [1.0, 0.0]}, "not of yes and no"),
    ({"gemma3.attention.sliding_window_pattern": [True] * 100_000}, "pattern of 100000"),
    ({"gemma3.rope.freq_base": float("nan")}, "nan for gemma3.rope.freq_base"),
    ({"gemma3.rope.freq_base_swa": float("inf")}, "inf for gemma3.rope.freq_base_swa"),
    ({"extra": {"blk.1.attn_q_norm.weight": vector(32)}}, "attn_q_norm"),
    ({"extra": {"blk.1.post_ffw_norm.weight": None}}, "post_ffw_norm"),
]


@pytest.mark.parametrize(("changes", "complaint"), DAMAGED_GEMMA3, ids=[complaint for _, complaint in DAMAGED_GEMMA3])
def test_sliding_windows_that_cannot_be_right_are_unreadable(
    gemma3: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(gemma3, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnreadableModelError, match=complaint):
        open_gguf(path)


DAMAGED_PHI3 = [
    ({"extra": {"rope_factors_long.weight": vector(32)}}, "rope_factors_long.weight of shape"),
    ({"extra": {"rope_factors_short.weight": vector(24, 0.0)}}, "no usual positive number"),
    ({"extra": {"rope_factors_short.weight": vector(24, float("nan"))}}, "no usual positive number"),
    ({"extra": {"rope_factors_long.weight": vector(24, float("inf"))}}, "no usual positive number"),
    ({"extra": {"rope_factors_long.weight": vector(24, -1.0)}}, "no usual positive number"),
    ({"extra": {"rope_factors_long.weight": vector(24, 1e-38)}}, "no usual positive number"),
    ({"phi3.rope.scaling.attn_factor": float("nan")}, "attn_factor"),
    ({"extra": {"blk.0.ffn_up.weight": np.zeros((512, 256), dtype=np.float32)}}, "ffn_up.weight"),
    ({"extra": {"blk.0.attn_qkv.bias": vector(256)}}, "attn_qkv.bias"),
]


@pytest.mark.parametrize(("changes", "complaint"), DAMAGED_PHI3, ids=range(len(DAMAGED_PHI3)))
def test_factors_that_cannot_be_right_are_unreadable(
    phi3: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(phi3, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnreadableModelError, match=complaint):
        open_gguf(path)


@pytest.mark.parametrize("rotated", [0, 33, 66])
def test_rotary_positions_that_do_not_fit_a_head_are_refused(phi3: Path, tmp_path: Path, rotated: int) -> None:
    path = rewritten(phi3, tmp_path / "m.gguf", **{"phi3.rope.dimension_count": rotated})
    with pytest.raises(UnsupportedModelError, match="do not fit its heads"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"extra": {"output_norm.weight": None}}, "missing"),
        ({"extra": {"blk.0.attn_k.weight": np.zeros((64, 256), dtype=np.float32)}}, "attn_k.weight"),
        ({"extra": {"blk.0.attn_q.bias": vector(128)}}, "attn_q.bias"),
        ({"extra": {"rope_freqs.weight": vector(64)}}, "rope_freqs.weight"),
        ({"llama.block_count": 2_000_000_000}, "layers"),
        ({"llama.block_count": 512}, "512 layers"),
        ({"llama.embedding_length": float("nan")}, "embedding_length"),
        ({"llama.attention.head_count": 0}, "0 heads"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "nan"),
    ],
    ids=str,
)
def test_what_does_not_add_up_is_unreadable(
    tiny_f32: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnreadableModelError, match=complaint):
        open_gguf(path)


HOSTILE = st.one_of(
    st.integers(-(1 << 31), (1 << 32) - 1),
    st.sampled_from([0, 1, 2, 3, 4, 64, 128]),
    st.floats(width=32),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["none", "linear", "yarn", "longrope"]),
    st.lists(st.booleans(), min_size=1, max_size=4),
)
NUMBERS = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window",
    "attention.sliding_window_pattern", "attention.layer_norm_rms_epsilon", "attention.causal", "rope.freq_base",
    "rope.freq_base_swa", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "expert_count", "final_logit_softcapping",
)  # fmt: skip


@pytest.mark.parametrize("architecture", ["gemma3", "phi3"])
@given(changes=st.dictionaries(st.sampled_from(NUMBERS), HOSTILE, min_size=1, max_size=3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_metadata_claims_is_refused_in_words_or_gives_finite_positions(
    tmp_path: Path, architecture: str, changes: dict[str, object]
) -> None:
    source = tmp_path / "source.gguf"
    if not source.exists():
        shape = dataclasses.replace(SHAPES[architecture], hidden=64, ffn=64, head_dim=16, rotated=None)
        open_gguf(write_model(source, shape, architecture))
    path = rewritten(source, tmp_path / "m.gguf", **{f"{architecture}.{key}": value for key, value in changes.items()})
    with suppress(ModelError):
        check_positions(open_gguf(path))


def check_positions(model: GgufModel) -> None:
    for layer in range(model.config.n_layers):
        rotary = model.rotary(layer, 512)
        assert np.isfinite(rotary.frequencies).all()
        assert 0 < rotary.magnitude < float("inf")
        window = model.config.attention_window(layer)
        assert window is None or window >= 1


def test_heads_that_are_wider_than_a_qwen2_are_refused_as_llama_cpp_does(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", Shape(heads=8), "qwen2")
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        open_gguf(path)


def test_a_base_is_pinned_by_its_hash(tiny_f32: Path, tiny_q8: Path) -> None:
    sha256 = sha256_file(tiny_f32)
    assert sha256 == hashlib.sha256(tiny_f32.read_bytes()).hexdigest()
    check_base(tiny_f32, sha256)
    with pytest.raises(BaseMismatchError, match=sha256[:16]):
        check_base(tiny_q8, sha256)
    with pytest.raises(UnreadableModelError):
        sha256_file(tiny_f32 / "missing")
