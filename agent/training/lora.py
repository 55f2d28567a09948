"""LoRA on a packed model, in and out of :class:`agent.llm.adapter.Adapter` (Hu et al. 2021, *LoRA*)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.training.decoder import Decoder
from agent.training.projection import Layer, Projection


class LoraModel:
    """A packed model with an adapter that can be trained.

    Args:
        model: the packed model, which is changed in place.
        rank: of the adapter.
        alpha: of the adapter.
        target_modules: last names of the layers to change, such as ``q_proj``.
        base_sha256: of the base.
        seed: of the initial A; B begins at zero, so the model begins as the base.
        last_layers: change only so many blocks, the last ones; None for all.
        factors: which of them are trained; the other one is frozen (Sun et al. 2024, *FFA-LoRA*, freeze A).
    """

    def __init__(
        self,
        *,
        model: Decoder,
        rank: int,
        alpha: float,
        target_modules: Sequence[str],
        base_sha256: str,
        seed: int = 0,
        last_layers: int | None = None,
        factors: Literal["both", "a", "b"] = "both",
    ) -> None:
        self.packed = model
        self._trained = factors
        self._base_sha256 = base_sha256
        self._rank, self._alpha = rank, alpha
        self._projections: list[Projection] = []
        wanted = set(target_modules)
        generator = torch.Generator().manual_seed(seed)
        self.first_layer = 0 if last_layers is None else max(0, len(model.blocks) - last_layers)
        for block in model.blocks[self.first_layer :]:
            for projection in block.projections:
                changed = [layer for layer in projection.layers if layer.path.rsplit(".", 1)[-1] in wanted]
                if changed:
                    self._attach(projection, changed, generator)

    def _attach(self, projection: Projection, changed: Sequence[Layer], generator: torch.Generator) -> None:
        """Give a projection factors as PEFT begins with them: A uniform as of a linear layer, B zero."""
        width = projection.layers[0].weight.tensor.shape[1]
        a = torch.empty(len(changed) * self._rank, width)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        projection.a = nn.Parameter(a, requires_grad=self._trained != "b")
        projection.rank, projection.scaling = self._rank, self._alpha / self._rank
        for layer in changed:
            layer.b = nn.Parameter(torch.zeros(layer.weight.rows, self._rank), requires_grad=self._trained != "a")
        self._projections.append(projection)

    def parameters(self) -> list[nn.Parameter]:
        """Give what is trained, in a fixed order."""
        found: list[nn.Parameter] = []
        for projection in self._projections:
            assert projection.a is not None
            found.extend([projection.a, *(b for _, _, b in projection.changed)])
        return [parameter for parameter in found if parameter.requires_grad]

    def load(self, adapter: Adapter) -> None:
        """Put an adapter's numbers in.

        Raises:
            AdapterError: it changes other layers, or has another rank, alpha or shapes.
        """
        expected = {path: (len(b), a.shape[1]) for path, a, b in self._factors()}
        if (adapter.rank, adapter.alpha) != (self._rank, self._alpha) or adapter.shapes != expected:
            raise AdapterError(
                f"the adapter (rank {adapter.rank}, alpha {adapter.alpha:g}, {len(adapter.modules)} layers) is not one "
                f"of rank {self._rank}, alpha {self._alpha:g} for {len(expected)} layers of this base",
                advice="Bring it to this rank first, and train the layers that it changes.",
            )
        with torch.no_grad():
            for path, a, b in self._factors():
                a.copy_(torch.from_numpy(np.array(adapter.modules[path].a, dtype=np.float32)))
                b.copy_(torch.from_numpy(np.array(adapter.modules[path].b, dtype=np.float32)))

    def extract(self) -> Adapter:
        """Give a copy of the adapter as it is now."""
        modules = {path: LoraFactors(a=a.numpy().copy(), b=b.numpy().copy()) for path, a, b in self._factors()}
        return Adapter(
            rank=self._rank, alpha=self._alpha, modules=dict(sorted(modules.items())), base_sha256=self._base_sha256
        )

    def _factors(self) -> Iterator[tuple[ModulePath, torch.Tensor, torch.Tensor]]:
        """Give each changed layer's name, and views of its A and B."""
        for projection in self._projections:
            assert projection.a is not None
            changed = [layer for layer in projection.layers if layer.b is not None]
            for place, layer in enumerate(changed):
                assert layer.b is not None
                rows = projection.a.detach()[place * self._rank : (place + 1) * self._rank]
                yield layer.path, rows, layer.b.detach()


def put_on(model: Decoder, adapter: Adapter) -> LoraModel:
    """Put a finished adapter on a model."""
    lora = LoraModel(
        model=model,
        rank=adapter.rank,
        alpha=adapter.alpha,
        target_modules=adapter.target_modules,
        base_sha256=adapter.base_sha256,
        last_layers=len(model.blocks) - min(int(path.split(".")[2]) for path in adapter.modules),
    )
    lora.load(adapter)
    return lora
