from __future__ import annotations

import argparse
import inspect
import shutil
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from agent.llm.adapter import Adapter, read_adapter, write_peft
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import GgufModel, open_gguf
from agent.llm.runtime import Runtime
from agent.llm.seedling import SEEDLING_PATH, SEEDLING_SHA256
from agent.training.job import TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel
from agent.training.model import build_packed_model, mean_loss, resolve_compute
from agent.training.trainer import train
from tests.models import quantise, random_adapter

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def tokens() -> NDArray[np.uint32]:
    return np.random.default_rng(3).integers(0, 300, (12, 32)).astype(np.uint32)


def torch_losses(base: GgufModel, tokens: NDArray[np.uint32], adapter: Adapter | None = None) -> NDArray[np.float64]:
    """Give the mean loss of each window by the packed model."""
    model = build_packed_model(base)
    if adapter is not None:
        lora = LoraModel(
            model=model,
            rank=adapter.rank,
            alpha=adapter.alpha,
            target_modules=adapter.target_modules,
            base_sha256=adapter.base_sha256,
        )
        lora.load(adapter)
    with torch.inference_mode():
        return np.array([float(mean_loss(model, torch.from_numpy(w[None].astype(np.int64)))) for w in tokens])


def llama_losses(base: GgufModel, tokens: NDArray[np.uint32], adapter: Path | None = None) -> NDArray[np.float64]:
    """Give the mean loss of each window by llama.cpp."""
    with Runtime(base_path=base.path, n_ctx=128, n_threads=1) as runtime:
        runtime.use([(runtime.load_adapter(adapter), 1.0)] if adapter is not None else [])
        found = runtime.losses(tokens)
        return found.nll / found.targets


@pytest.mark.parametrize(
    ("file_type", "tolerance"),
    [
        ("ALL_F32", 0.001),
        ("MOSTLY_F16", 0.005),
        ("MOSTLY_BF16", 0.005),
        ("MOSTLY_Q8_0", 0.01),
        ("MOSTLY_Q4_0", 0.01),
        ("MOSTLY_Q4_K_S", 0.01),
        ("MOSTLY_Q6_K", 0.01),
        ("MOSTLY_Q2_K", 0.01),
        ("MOSTLY_IQ4_XS", 0.01),
    ],
)
def test_the_packed_model_and_its_adapter_agree_with_llama_cpp(
    tiny_f32: Path, tmp_path: Path, tokens: NDArray[np.uint32], file_type: str, tolerance: float
) -> None:
    base = open_gguf(quantise(tiny_f32, tmp_path / "base.gguf", file_type))
    adapter = random_adapter(base, rank=4, alpha=8.0, names=ALL, size=0.15)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    plain, adapted = torch_losses(base, tokens), torch_losses(base, tokens, adapter)
    llama_plain, llama_adapted = llama_losses(base, tokens), llama_losses(base, tokens, tmp_path / "a.gguf")
    assert plain.mean() == pytest.approx(llama_plain.mean(), abs=tolerance)
    assert adapted.mean() == pytest.approx(llama_adapted.mean(), abs=tolerance)
    # single windows of a random model differ more, because llama.cpp rounds activations to 8 bits; the change must show
    assert np.corrcoef(adapted - plain, llama_adapted - llama_plain)[0, 1] > 0.95
    assert np.abs(adapted - plain).max() > 0.1


@pytest.mark.parametrize("name", ["q_proj", "k_proj"])
def test_rotary_layers_are_adapted_in_the_right_row_order(
    tiny_f32: Path, tmp_path: Path, tokens: NDArray[np.uint32], name: str
) -> None:
    base = open_gguf(tiny_f32)
    adapter = random_adapter(base, rank=8, alpha=8.0, names=[name], size=0.4)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    adapted = torch_losses(base, tokens, adapter)
    np.testing.assert_allclose(adapted, llama_losses(base, tokens, tmp_path / "a.gguf"), atol=0.005)
    assert np.abs(adapted - torch_losses(base, tokens)).max() > 0.1


def test_an_output_layer_and_rotary_factors_of_its_own(untied_f32: Path, tokens: NDArray[np.uint32]) -> None:
    base = open_gguf(untied_f32)
    np.testing.assert_allclose(torch_losses(base, tokens), llama_losses(base, tokens), atol=0.002)


def test_a_real_model_agrees_with_llama_cpp_with_and_without_adapter(stories: Path, tmp_path: Path) -> None:
    base = open_gguf(stories)
    with Runtime(base_path=stories, n_ctx=128, n_threads=1) as runtime:
        text = "Once upon a time there was a little girl named Lily. She loved to play in the park. " * 4
        tokens = np.array([[1, *runtime.tokenize(text)][:120]], dtype=np.uint32)
    adapter = random_adapter(base, rank=4, alpha=4.0, names=ALL, size=0.1)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    plain = torch_losses(base, tokens).mean()
    assert plain < 2.0
    assert plain == pytest.approx(llama_losses(base, tokens).mean(), abs=0.005)
    assert torch_losses(base, tokens, adapter).mean() == pytest.approx(
        llama_losses(base, tokens, tmp_path / "a.gguf").mean(), abs=0.005
    )


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
    plain, learnt = torch_losses(base, tokens).mean(), torch_losses(base, tokens, read_adapter(result.peft_path)).mean()
    assert learnt < plain - 0.5
    assert llama_losses(base, tokens).mean() == pytest.approx(plain, abs=0.01)
    assert llama_losses(base, tokens, result.gguf_path).mean() == pytest.approx(learnt, abs=0.01)


def test_it_keeps_no_weights_unpacked(tiny_q8: Path) -> None:
    base = open_gguf(tiny_q8)
    model = build_packed_model(base)
    kept = {name for name, _ in model.named_parameters()}
    assert kept == {name for name in kept if "norm" in name}
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert len(kept) == 5


@pytest.mark.parametrize("which", ["tiny_q8", "stories"])
def test_plain_peft_on_an_unpacked_copy_computes_the_same(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = open_gguf(request.getfixturevalue(which))
    with Runtime(base_path=base.path, n_ctx=128, n_threads=1) as runtime:
        text = "Tom and his dog ran to the big tree. The dog was happy. Tom said, thank you! " * 4
        tokens = np.array([[1, *runtime.tokenize(text)][:120]], dtype=np.uint32)
    adapter = random_adapter(base, rank=4, alpha=8.0, names=ALL, size=0.1)
    write_gguf_adapter(adapter, base, tmp_path / "a.gguf")
    write_peft(adapter, tmp_path / "peft", base_name=base.path.name)
    shutil.copy(base.path, tmp_path / "base.gguf")
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="base.gguf")
    config.pad_token_id = None  # out of range in the stories' file
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="base.gguf", config=config, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses a name that transformers is giving up
        model = PeftModel.from_pretrained(plain, tmp_path / "peft")
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    assert loss == pytest.approx(llama_losses(base, tokens, tmp_path / "a.gguf").mean(), abs=0.005)
    assert loss == pytest.approx(torch_losses(base, tokens, adapter).mean(), abs=0.0005)
    assert abs(loss - torch_losses(base, tokens).mean()) > 0.02


def test_automatic_compute_picks_one_that_exists() -> None:
    assert resolve_compute("auto") in {torch.float32, torch.bfloat16}
    assert resolve_compute("bfloat16") == torch.bfloat16
