from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from agent.errors import AdapterError, BaseMismatchError, UnreadableModelError, UnsupportedModelError
from agent.llm.gguf_file import (
    check_base,
    open_gguf,
    read_metadata_array,
    sha256_file,
    target_modules,
    target_shapes,
)


def rewritten(source: Path, target: Path, **changes: object) -> Path:
    """Copy a model with other metadata (by key; None leaves it out) or tensors (``extra``, likewise)."""
    reader = gguf.GGUFReader(source)
    tensors: dict[str, object] = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    tensors |= changes.pop("extra", {})  # type: ignore[call-overload]
    writer = gguf.GGUFWriter(target, arch=str(changes.pop("architecture", "llama")))
    kept = {key: field.contents() for key, field in reader.fields.items() if key.startswith("llama.")}
    adders = {str: writer.add_string, list: writer.add_array, float: writer.add_float32, int: writer.add_uint32}
    for key, value in (kept | changes).items():
        if value is not None:
            adders[type(value)](key, value)
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


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
    assert len(read_metadata_array(model, "tokenizer.ggml.tokens")) == 320


def test_target_modules_are_named_as_transformers_names_them(tiny_f32: Path) -> None:
    modules = target_modules(open_gguf(tiny_f32))
    assert len(modules) == 2 * 7
    found = {str(path): target for path, target in modules.items()}
    assert found["model.layers.1.self_attn.k_proj"] == (128, 256, "blk.1.attn_k.weight", 2)
    assert found["model.layers.0.mlp.down_proj"] == (256, 512, "blk.0.ffn_down.weight", 0)


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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 32}, "part of each head"),
        ({"llama.attention.head_count_kv": [2, 4]}, "head_count_kv"),
        ({"llama.attention.head_count_kv": 3}, "key-value heads"),
        ({"llama.attention.head_count_kv": 0}, "key-value heads"),
        ({"llama.context_length": None}, "context_length"),
        ({"llama.attention.value_length": 128}, "value heads"),
        ({"llama.attention.layer_norm_rms_epsilon": 2.0}, "epsilon"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(256, dtype=np.float32)}}, "attn_q.bias"),
        ({"extra": {"blk.0.attn_q.weight": np.zeros((256, 256), dtype=np.int32)}}, "I32"),
        ({"general.type": "adapter"}, "of type adapter"),
    ],
    ids=str,
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tiny_f32: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnsupportedModelError, match=complaint) as caught:
        open_gguf(path)
    assert caught.value.advice


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"extra": {"output_norm.weight": None}}, "missing"),
        ({"extra": {"blk.0.attn_k.weight": np.zeros((64, 256), dtype=np.float32)}}, "attn_k.weight"),
        ({"llama.block_count": 2_000_000_000}, "layers"),
        ({"llama.attention.head_count": 0}, "0 heads"),
    ],
    ids=str,
)
def test_what_does_not_add_up_is_unreadable(
    tiny_f32: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = rewritten(tiny_f32, tmp_path / "m.gguf", **dict(changes))
    with pytest.raises(UnreadableModelError, match=complaint):
        open_gguf(path)


def test_a_base_is_pinned_by_its_hash(tiny_f32: Path, tiny_q8: Path) -> None:
    sha256 = sha256_file(tiny_f32)
    assert sha256 == hashlib.sha256(tiny_f32.read_bytes()).hexdigest()
    check_base(tiny_f32, sha256)
    with pytest.raises(BaseMismatchError, match=sha256[:16]):
        check_base(tiny_q8, sha256)
    with pytest.raises(UnreadableModelError):
        sha256_file(tiny_f32 / "missing")
