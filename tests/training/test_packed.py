from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.llm.ggml import F32, dequantize, format_of
from agent.llm.gguf_file import GgufTensor, open_gguf
from agent.llm.rotary import model_order
from agent.training.packed import PackedEmbedding, PackedLinear, Scratch
from tests.training.gradients import backward

TYPES = ["MOSTLY_F16", "MOSTLY_Q4_0", "MOSTLY_Q8_0", "MOSTLY_Q4_K_S", "MOSTLY_Q6_K", "MOSTLY_Q2_K", "MOSTLY_IQ4_XS"]


def unpacked(tensor: GgufTensor) -> torch.Tensor:
    out = np.empty(tensor.shape, dtype=np.float32)
    dequantize(tensor.format, tensor.packed, out)
    return torch.from_numpy(out)


def scratch(*, compute: torch.dtype = torch.float32, threads: int = 1) -> Scratch:
    return Scratch(elements=512 * 256, reordered=256 * 256, compute=compute, threads=threads)


@pytest.mark.parametrize("heads", [0, 4])
def test_a_packed_layer_gives_the_values_and_gradients_of_a_plain_one(tiny_q8: Path, heads: int) -> None:
    weight = open_gguf(tiny_q8).tensors["blk.0.attn_q.weight"]
    layer = PackedLinear(weight=weight, scratch=scratch(), rotary_heads=heads)
    plain = unpacked(weight)
    if heads:
        plain = plain[torch.from_numpy(model_order(256, heads))]
    x = torch.randn(3, 5, 256, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x), other @ plain.T
    torch.testing.assert_close(y, expected)
    backward(y.square().sum())
    backward(expected.square().sum())
    torch.testing.assert_close(x.grad, other.grad)


def test_layers_share_one_buffer_without_disturbing_each_other(tiny_q8: Path) -> None:
    tensors = open_gguf(tiny_q8).tensors
    shared = scratch()
    gate, up, down = (
        PackedLinear(weight=tensors[f"blk.0.ffn_{name}.weight"], scratch=shared) for name in ("gate", "up", "down")
    )
    x = torch.randn(7, 256, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    backward(down(torch.nn.functional.silu(gate(x)) * up(x)).sum())
    g, u, d = (unpacked(layer.packed) for layer in (gate, up, down))
    backward(((torch.nn.functional.silu(other @ g.T) * (other @ u.T)) @ d.T).sum())
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_come_back_as_float32_and_close(tiny_q8: Path) -> None:
    weight = open_gguf(tiny_q8).tensors["blk.0.ffn_up.weight"]
    layer = PackedLinear(weight=weight, scratch=scratch(compute=torch.bfloat16))
    x = torch.randn(64, 256, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x @ unpacked(weight).T, rtol=0.05, atol=0.05)
    backward(y.sum())
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_several_threads_unpack_the_same(untied_f32: Path) -> None:
    weight = open_gguf(untied_f32).tensors["output.weight"]
    big = GgufTensor("big", (4 * 320, 256), weight.format, np.tile(weight.packed, 4))
    room = Scratch(elements=4 * 320 * 256, reordered=0, compute=torch.float32, threads=3)
    torch.testing.assert_close(room.unpack(big, 1, 1280), unpacked(big)[1:], rtol=0, atol=0)


def test_an_embedding_unpacks_what_is_looked_up(tiny_q8: Path) -> None:
    table = open_gguf(tiny_q8).tensors["token_embd.weight"]
    tokens = torch.tensor([[5, 319, 5], [0, 7, 7]])
    found = PackedEmbedding(weight=table)(tokens)
    torch.testing.assert_close(found, unpacked(table)[tokens], rtol=0, atol=0)


def test_nothing_of_a_packed_layer_is_in_its_state() -> None:
    weight = GgufTensor("w", (2, 4), format_of(F32), np.zeros(32, dtype=np.uint8))
    layer = PackedLinear(weight=weight, scratch=scratch())
    assert dict(layer.state_dict()) == {}
    assert list(layer.parameters()) == []
    assert "format=F32" in repr(layer)
