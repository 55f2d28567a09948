"""AdamW by torch's fused kernel (Loshchilov and Hutter 2019, *Decoupled Weight Decay Regularization*, algorithm 2).

``torch.optim`` calls the same kernel, but brings torch's compiler into the process before its first step: a second of
every worker's start, and 70 MB of its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agent.training.moments import NAMES

_FIRST, _SECOND = NAMES
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class AdamW:
    """The optimiser of an adapter.

    Args:
        parameters: what it changes, in place; float32.
        weight_decay: share of each parameter that it takes away, times the learning rate.
    """

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        self._weight_decay = weight_decay
        self.updates = 0
        """How often it changed them."""
        self.moments: list[Mapping[str, Tensor]] = [
            {_FIRST: torch.zeros_like(parameter), _SECOND: torch.zeros_like(parameter)}
            for parameter in self._parameters
        ]
        """Running means of the gradients and of their squares, in the order of the parameters."""

    def step(self, gradients: Sequence[Tensor], *, learning_rate: float) -> None:
        """Change every parameter by its gradient."""
        self.updates += 1
        torch._fused_adamw_(
            self._parameters,
            list(gradients),
            [moments[_FIRST] for moments in self.moments],
            [moments[_SECOND] for moments in self.moments],
            [],
            [torch.tensor(float(self.updates))] * len(self._parameters),
            lr=learning_rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=self._weight_decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def restore(self, updates: int, moments: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from where another one was."""
        self.updates, self.moments = updates, list(moments)
