from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agent.llm.gguf_file import open_gguf
from agent.training import head as head_module
from agent.training.head import PackedHead
from agent.training.packed import Scratch
from tests.training.gradients import backward
from tests.training.test_packed import unpacked


def make(path: Path, rows: int, compute: torch.dtype = torch.float32) -> PackedHead:
    room = Scratch(elements=rows * 256, reordered=0, compute=compute, threads=1)
    return PackedHead(weight=open_gguf(path).tensors["token_embd.weight"], scratch=room)


@pytest.mark.parametrize("rows", [320, 1000, 100, 7])
@pytest.mark.parametrize("positions", [1, 16, 53])
def test_the_loss_in_pieces_is_the_plain_loss_and_gradient(
    tiny_q8: Path, rows: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "_LOGIT_ELEMENTS", 20 * 320)
    head = make(tiny_q8, rows)
    hidden = (3 * torch.randn(positions, 256)).requires_grad_()
    other = hidden.detach().clone().requires_grad_()
    targets = torch.randint(0, 320, (positions,))
    loss = head.loss(hidden, targets)
    expected = torch.nn.functional.cross_entropy(other @ unpacked(head.packed).T, targets)
    torch.testing.assert_close(loss, expected)
    backward(2 * loss)
    backward(2 * expected)
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_huge_logits_stay_finite(tiny_q8: Path) -> None:
    head = make(tiny_q8, 320)
    hidden = torch.full((4, 256), 1e4, requires_grad=True)
    loss = head.loss(hidden, torch.tensor([0, 1, 2, 3]))
    backward(loss)
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_all_logits_are_there_for_who_wants_them(tiny_q8: Path) -> None:
    head = make(tiny_q8, 100)
    hidden = torch.randn(2, 3, 256)
    torch.testing.assert_close(head(hidden), hidden @ unpacked(head.packed).T)


def test_bfloat16_loss_is_close(tiny_q8: Path) -> None:
    hidden, targets = torch.randn(30, 256), torch.randint(0, 320, (30,))
    exact, coarse = (make(tiny_q8, 100, compute).loss(hidden, targets) for compute in (torch.float32, torch.bfloat16))
    assert abs(float(exact - coarse)) < 0.01
