from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.errors import AdapterError, StateError
from agent.llm.adapter import Adapter
from agent.llm.adapter_files import FORMS, Form, export_adapter, read_any_adapter
from agent.llm.gguf_file import open_gguf
from agent.llm.runtime import Runtime
from tests.models import random_adapter


@pytest.fixture(scope="module")
def adapter(tiny_f32: Path) -> Adapter:
    return random_adapter(open_gguf(tiny_f32), rank=4, alpha=8.0, names=["q_proj", "down_proj"])


def export(adapter: Adapter, out: Path, form: Form, base: Path, *, overwrite: bool = False) -> Path:
    return export_adapter(adapter, out, form, base=base, stem="community", overwrite=overwrite)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back_as_the_same_numbers(
    adapter: Adapter, tiny_f32: Path, tmp_path: Path, form: Form
) -> None:
    written = export(adapter, tmp_path / "out", form, tiny_f32)
    again = read_any_adapter(written, tiny_f32)
    assert (again.rank, again.alpha, again.base_sha256) == (adapter.rank, adapter.alpha, adapter.base_sha256)
    for name, factors in adapter.modules.items():
        assert np.array_equal(again.modules[name].a, factors.a)
        assert np.array_equal(again.modules[name].b, factors.b)


@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_file_in_a_directory_is_named_after_the_adapter(
    adapter: Adapter, tiny_f32: Path, tmp_path: Path, form: Form
) -> None:
    assert export(adapter, tmp_path, form, tiny_f32) == tmp_path / f"community.{form}"
    assert [path.name for path in tmp_path.iterdir()] == [f"community.{form}"]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_kept_unless_replaced(adapter: Adapter, tiny_f32: Path, tmp_path: Path, form: Form) -> None:
    out = tmp_path / "out"
    export(adapter, out, form, tiny_f32)
    other = replace(adapter, alpha=2.0)
    with pytest.raises(StateError, match="exists already"):
        export(other, out, form, tiny_f32)
    assert read_any_adapter(out, tiny_f32).alpha == 8.0
    export(other, out, form, tiny_f32, overwrite=True)
    assert read_any_adapter(out, tiny_f32).alpha == 2.0


def test_peft_directory_never_replaces_a_file(adapter: Adapter, tiny_f32: Path, tmp_path: Path) -> None:
    out = tmp_path / "notes"
    out.write_text("mine")
    with pytest.raises(StateError):
        export(adapter, out, "peft", tiny_f32, overwrite=True)
    assert out.read_text() == "mine"


def test_replacing_a_peft_directory_leaves_other_files_in_it(adapter: Adapter, tiny_f32: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    export(adapter, tmp_path, "peft", tiny_f32, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "notes",
    ]


def test_gguf_for_another_base_is_refused(adapter: Adapter, tiny_q8: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="another file"):
        export(adapter, tmp_path / "x.gguf", "gguf", tiny_q8)
    assert not list(tmp_path.iterdir())


def test_gguf_adapter_needs_its_base_to_be_read(adapter: Adapter, tiny_f32: Path, tmp_path: Path) -> None:
    written = export(adapter, tmp_path / "x.gguf", "gguf", tiny_f32)
    with pytest.raises(AdapterError, match="beside its base") as refused:
        read_any_adapter(written, None)
    assert "--base" in refused.value.advice


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nowhere"):
        read_any_adapter(tmp_path / "nowhere", None)


def test_gguf_loads_in_llama_cpp_and_changes_what_it_computes(adapter: Adapter, tiny_f32: Path, tmp_path: Path) -> None:
    written = export(adapter, tmp_path / "x.gguf", "gguf", tiny_f32)
    tokens = np.arange(1, 33, dtype=np.uint32)[None]
    with Runtime(base_path=tiny_f32, n_ctx=64, n_threads=1) as runtime:
        before = _loss(runtime, tokens)
        runtime.use([(runtime.load_adapter(written), 1.0)])
        assert abs(_loss(runtime, tokens) - before) > 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's use of transformers
def test_peft_directory_loads_in_peft_with_the_same_product(adapter: Adapter, tiny_f32: Path, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 (seconds of imports that the other tests here do not need)
    from peft import PeftModel  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    export(adapter, tmp_path / "peft", "peft", tiny_f32)
    config = open_gguf(tiny_f32).config
    bare = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden,
            intermediate_size=config.ffn,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            vocab_size=config.vocab,
        )
    )
    model = PeftModel.from_pretrained(bare, str(tmp_path / "peft"))
    name = next(iter(adapter.modules))
    layer = model.get_submodule(f"base_model.model.{name}")
    factors = adapter.modules[name]
    expected = adapter.scaling * factors.b @ factors.a
    assert torch.allclose(layer.get_delta_weight("default"), torch.from_numpy(expected), atol=1e-6)


def _loss(runtime: Runtime, tokens: np.ndarray) -> float:
    found = runtime.losses(tokens)
    return float(found.mean)


def test_peft_is_told_which_layers_are_changed_where_it_is_not_all_of_them(
    adapter: Adapter, tiny_f32: Path, tmp_path: Path
) -> None:
    upper = replace(adapter, modules={name: f for name, f in adapter.modules.items() if ".layers.1." in name})
    for given, layers in ((adapter, None), (upper, [1])):
        folder = export(given, tmp_path / str(layers), "peft", tiny_f32)
        assert json.loads((folder / "adapter_config.json").read_text()).get("layers_to_transform") == layers
