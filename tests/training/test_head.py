from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from agent.errors import TrainingPausedError
from agent.llm.gguf_file import open_gguf
from agent.training.head import PackedHead
from agent.training.packed import Scratch
from tests.training.gradients import backward, own, unpacked

TABLE = "token_embd.weight"


def make(path: Path, rows: int, compute: torch.dtype = torch.float32, *, positions: int = 20) -> PackedHead:
    room = Scratch(elements=rows * 256, compute=compute)
    return PackedHead(weight=open_gguf(path).tensors[TABLE], scratch=room, rows=positions)


@pytest.mark.parametrize("rows", [320, 1000, 100, 7])
@pytest.mark.parametrize("positions", [1, 16, 53])
def test_the_loss_in_pieces_is_the_plain_loss_and_gradient(tiny_q8: Path, rows: int, positions: int) -> None:
    head = make(tiny_q8, rows)
    hidden = (3 * torch.randn(positions, 256)).requires_grad_()
    other = own(hidden)
    targets = torch.randint(0, 320, (positions,))
    loss = head.loss(hidden, targets)
    expected = cross_entropy(other @ unpacked(open_gguf(tiny_q8).tensors[TABLE]).T, targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    backward(2 * loss)
    backward(2 * expected)
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [320, 7])
def test_huge_logits_stay_finite(tiny_q8: Path, rows: int) -> None:
    head = make(tiny_q8, rows)
    hidden = torch.full((4, 256), 1e4, requires_grad=True)
    loss = head.loss(hidden, torch.tensor([0, 1, 2, 3]))
    backward(loss)
    assert torch.isfinite(loss)
    table = unpacked(open_gguf(tiny_q8).tensors[TABLE]).double()
    expected = cross_entropy(hidden.detach().double() @ table.T, torch.tensor([0, 1, 2, 3]), reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_logits_that_are_no_number_are_no_loss(tiny_q8: Path) -> None:
    hidden = torch.zeros(2, 256)
    hidden[1, 3] = torch.inf
    assert not torch.isfinite(make(tiny_q8, 320).loss(hidden, torch.tensor([0, 1])))


def test_no_position_costs_nothing_and_learns_nothing(tiny_q8: Path) -> None:
    hidden = torch.zeros(0, 256, requires_grad=True)
    loss = make(tiny_q8, 320).loss(hidden, torch.zeros(0, dtype=torch.int64))
    backward(loss)
    assert loss == 0


def test_all_logits_are_there_for_who_wants_them(tiny_q8: Path) -> None:
    head = make(tiny_q8, 100)
    hidden = torch.randn(6, 256)
    torch.testing.assert_close(head.logits(hidden), hidden @ unpacked(open_gguf(tiny_q8).tensors[TABLE]).T)


def test_bfloat16_loss_is_close(tiny_q8: Path) -> None:
    hidden, targets = torch.randn(30, 256), torch.randint(0, 320, (30,))
    exact, coarse = (make(tiny_q8, 100, compute).loss(hidden, targets) for compute in (torch.float32, torch.bfloat16))
    assert abs(float(exact - coarse)) / 30 < 0.01


def test_every_piece_of_positions_is_a_moment_to_leave(tiny_q8: Path) -> None:
    looks: list[int] = []

    def leave_at_the_fourth() -> None:
        looks.append(1)
        if len(looks) == 4:
            raise TrainingPausedError("left", advice="")

    scratch = Scratch(elements=320 * 256, compute=torch.float32, before_use=leave_at_the_fourth)
    head = PackedHead(weight=open_gguf(tiny_q8).tensors[TABLE], scratch=scratch, rows=16)
    with pytest.raises(TrainingPausedError):
        head.loss(torch.randn(100, 256), torch.zeros(100, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 320, 5003])
def test_torch_takes_a_softmax_in_place(dtype: torch.dtype, width: int) -> None:
    scores = (5 * torch.randn(9, width)).to(dtype)
    expected = torch.softmax(scores, dim=1)
    torch.softmax(scores, dim=1, out=scores)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
