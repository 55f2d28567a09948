"""LoRA by PEFT on a packed model, in and out of :class:`agent.llm.adapter.Adapter`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.training.model import PackedModel

_NAME = "default"


class LoraModel:
    """A packed model with an adapter that can be trained.

    Args:
        model: the packed model, which is changed in place.
        rank: of the adapter.
        alpha: of the adapter.
        target_modules: last names of the layers to change, such as ``q_proj``.
        base_sha256: of the base.
        seed: of the initial A; B begins at zero, so the model begins as the base.
    """

    def __init__(
        self,
        *,
        model: PackedModel,
        rank: int,
        alpha: float,
        target_modules: Sequence[str],
        base_sha256: str,
        seed: int = 0,
    ) -> None:
        self.packed = model
        self._base_sha256 = base_sha256
        self._rank, self._alpha = rank, alpha
        # lora_alpha is declared as an integer, but PEFT only divides it by the rank
        config = LoraConfig(
            r=rank,
            lora_alpha=cast("int", int(alpha) if float(alpha).is_integer() else alpha),
            target_modules=list(target_modules),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, cast("Any", model), adapter_name=_NAME)
        self._layers: dict[ModulePath, Any] = {
            ModulePath(path): module for path, module in model.named_modules() if isinstance(module, LoraLinear)
        }

    def parameters(self) -> list[torch.nn.Parameter]:
        """Give what is trained, in a fixed order: A and B of each layer, layers in order of the model."""
        return [p for layer in self._layers.values() for p in (self._a(layer), self._b(layer))]

    def load(self, adapter: Adapter) -> None:
        """Put an adapter's numbers in.

        Raises:
            AdapterError: it changes other layers, or has another rank, alpha or shapes.
        """
        expected = {
            name: (layer.base_layer.out_features, layer.base_layer.in_features) for name, layer in self._layers.items()
        }
        if (adapter.rank, adapter.alpha) != (self._rank, self._alpha) or adapter.shapes != expected:
            raise AdapterError(
                f"the adapter (rank {adapter.rank}, alpha {adapter.alpha:g}, {len(adapter.modules)} layers) is not one "
                f"of rank {self._rank}, alpha {self._alpha:g} for {len(expected)} layers of this base",
                advice="Bring it to this rank first, and train the layers that it changes.",
            )
        with torch.no_grad():
            for name, layer in self._layers.items():
                self._a(layer).copy_(torch.from_numpy(np.array(adapter.modules[name].a, dtype=np.float32)))
                self._b(layer).copy_(torch.from_numpy(np.array(adapter.modules[name].b, dtype=np.float32)))

    def extract(self) -> Adapter:
        """Give a copy of the adapter as it is now."""
        modules = {
            name: LoraFactors(a=self._a(layer).detach().numpy().copy(), b=self._b(layer).detach().numpy().copy())
            for name, layer in sorted(self._layers.items())
        }
        return Adapter(rank=self._rank, alpha=self._alpha, modules=modules, base_sha256=self._base_sha256)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Compute as the base alone within a with block."""
        for layer in self._layers.values():
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(enabled=True)

    @staticmethod
    def _a(layer: Any) -> torch.nn.Parameter:
        return cast("torch.nn.Parameter", layer.lora_A[_NAME].weight)

    @staticmethod
    def _b(layer: Any) -> torch.nn.Parameter:
        return cast("torch.nn.Parameter", layer.lora_B[_NAME].weight)
