from __future__ import annotations

import errno
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import AdapterError, DiskFullError
from agent.llm.adapter import Adapter, ModulePath
from agent.llm.adapter_gguf import read_gguf_adapter, write_gguf_adapter
from agent.llm.gguf_file import open_gguf, target_modules
from agent.llm.runtime import Runtime
from tests.models import SHAPES, random_adapter, write_model


@given(
    rank=st.integers(1, 16),
    alpha=st.sampled_from([1.0, 8.0, 16.0, 3.5]),
    names=st.sets(st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]), min_size=1),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_adapter_comes_back_as_it_was(
    tiny_f32: Path, tmp_path: Path, rank: int, alpha: float, names: set[str]
) -> None:
    base = open_gguf(tiny_f32)
    adapter = random_adapter(base, rank=rank, alpha=alpha, names=sorted(names))
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    assert read_gguf_adapter(tmp_path / "a.gguf", base).to_bytes() == adapter.to_bytes()


@pytest.mark.parametrize("architecture", SHAPES)
def test_llama_cpp_loads_an_adapter_for_every_layer_of_every_architecture(tmp_path: Path, architecture: str) -> None:
    base = open_gguf(write_model(tmp_path / "m.gguf", architecture=architecture))
    names = sorted({path.rsplit(".", 1)[-1] for path in target_modules(base)})
    adapter = random_adapter(base, rank=4, alpha=8.0, names=names)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    assert read_gguf_adapter(tmp_path / "a.gguf", base).to_bytes() == adapter.to_bytes()
    windows = np.random.default_rng(0).integers(0, 300, (2, 65)).astype(np.uint32)
    with Runtime(base_path=base.path, n_ctx=128, n_threads=1) as runtime:
        alone = runtime.losses(windows).mean
        handle = runtime.load_adapter(tmp_path / "a.gguf")
        runtime.use([(handle, 1.0)])
        assert abs(runtime.losses(windows).mean - alone) > 1e-3
        runtime.use([(handle, 0.0)])
        assert runtime.losses(windows).mean == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("architecture", SHAPES)
def test_only_rows_that_are_stored_as_pairs_change_their_order(tmp_path: Path, architecture: str) -> None:
    base = open_gguf(write_model(tmp_path / "m.gguf", architecture=architecture))
    names = sorted({path.rsplit(".", 1)[-1] for path in target_modules(base)})
    adapter = random_adapter(base, rank=2, alpha=2.0, names=names)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert len(stored) == 2 * len(adapter.modules)
    reordered = {
        target.tensor.split(".")[2]
        for path, target in target_modules(base).items()
        if (stored[f"{target.tensor}.lora_b"] != adapter.modules[path].b).any()
    }
    assert reordered == ({"attn_q", "attn_k"} if architecture == "llama" else set())


def test_the_file_says_what_llama_cpp_looks_for(tiny_f32: Path, tmp_path: Path) -> None:
    base = open_gguf(tiny_f32)
    write_gguf_adapter(random_adapter(base, rank=4, alpha=8.0, names=["q_proj"]), base, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 8.0
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.1.attn_q.weight.lora_a"] == (256, 4)
    assert shapes["blk.1.attn_q.weight.lora_b"] == (4, 256)


def test_an_adapter_of_another_base_is_refused_by_the_name_of_the_layer(tiny_f32: Path, tmp_path: Path) -> None:
    base = open_gguf(tiny_f32)
    good = random_adapter(base, rank=2, alpha=2.0, names=["v_proj"])
    first = good.modules[ModulePath("model.layers.0.self_attn.v_proj")]
    for name in ("model.layers.9.self_attn.v_proj", "model.layers.0.mlp.up_proj"):
        wrong = Adapter(rank=2, alpha=2.0, modules={ModulePath(name): first}, base_sha256=good.base_sha256)
        with pytest.raises(AdapterError, match=name):
            write_gguf_adapter(wrong, base, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_adapter_that_was_there(
    tiny_f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_gguf(tiny_f32)
    path = tmp_path / "a.gguf"
    write_gguf_adapter(random_adapter(base, rank=2, alpha=2.0, names=["v_proj"]), base, path)
    before = path.read_bytes()

    def full(_self: gguf.GGUFWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(DiskFullError):
        write_gguf_adapter(random_adapter(base, rank=4, alpha=2.0, names=["v_proj"]), base, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_adapter_is_refused(tiny_f32: Path, tmp_path: Path) -> None:
    base = open_gguf(tiny_f32)
    text = tmp_path / "a.gguf"
    text.write_bytes(np.arange(100, dtype=np.float32).tobytes())
    for path in (text, tiny_f32, tmp_path / "missing.gguf"):
        with pytest.raises(AdapterError):
            read_gguf_adapter(path, base)
