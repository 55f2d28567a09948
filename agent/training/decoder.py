"""The decoder-only transformer that trains: every architecture in the table, over packed weights.

It computes what llama.cpp computes for the same file, block by block, with the names of modules that transformers
uses. The residual stream is float32; what flows inside a block is in the compute type. Rows of a pass are the tokens
of all its sequences, one after another, without padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agent.llm.adapter import ModulePath
from agent.llm.architectures import Role
from agent.llm.gguf_file import EMBEDDING, OUTPUT, OUTPUT_NORM, GgufModel, TargetModule, target_modules
from agent.llm.rotary import model_order
from agent.training.arena import Keeper
from agent.training.attention import Heads, Segments, attention, turns_of
from agent.training.elementwise import Elementwise, Turns
from agent.training.footprint import logit_rows, scratch_elements
from agent.training.head import PackedHead
from agent.training.packed import PackedEmbedding, PackedWeight, Scratch, unpack_vector
from agent.training.projection import Gate, Layer, Plain, Projection, Prologue, RmsNorm


class Pass(NamedTuple):
    """What one pass of the model computes.

    Attributes:
        tokens: int64, shape ``(rows,)``: the tokens of all sequences.
        segments: which rows are which sequence.
        targets: int64, shape ``(rows,)``: the token that follows each, -1 where it does not count.
    """

    tokens: Tensor
    segments: Segments
    targets: Tensor


@dataclass(slots=True, eq=False)
class Block:
    """One layer of the transformer.

    Attributes:
        qkv: norm, and the projections to queries, keys and values.
        heads: how attention is divided.
        out: the projection of what attention found.
        gate_up: norm, and the projections into the feed-forward layer.
        down: the gate, and the projection out of it.
        query_norm: norm of each query head, before it is turned; None for none.
        key_norm: likewise of each key head.
        after_attention: norm of what attention adds; None for none.
        after_ffn: norm of what the feed-forward layer adds; None for none.
        rotary: which table of turns the layer uses.
    """

    qkv: Projection
    heads: Heads
    out: Projection
    gate_up: Projection
    down: Projection
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    after_attention: RmsNorm | None
    after_ffn: RmsNorm | None
    rotary: int

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All that adapters can change, in order."""
        return (self.qkv, self.out, self.gate_up, self.down)

    def __call__(self, x: Tensor, segments: Segments, turns: Turns, *, product: bool = True) -> Tensor:
        """Give the residual stream after this layer, float32 ``(rows, hidden)``.

        Args:
            x: the residual stream before it.
            segments: which rows see one another.
            turns: by how much queries and keys are turned.
            product: False where only the gradients are wanted, for which the last product is not needed.
        """
        (qkv,) = self.qkv(x)
        keeper = self.qkv.scratch.keeper()
        (found,) = self.out(attention(self._normed_heads(qkv, keeper), self.heads, segments, turns, self.qkv.scratch))
        x = x + _normed(found, self.after_attention, keeper)
        (found,) = self.down(*self.gate_up(x), product=product or self.after_ffn is not None)
        return x + _normed(found, self.after_ffn, keeper)

    def parameters(self) -> list[nn.Parameter]:
        """Give what is trained of A and B of every adapted layer of this block."""
        found: list[nn.Parameter] = []
        for projection in self.projections:
            if projection.a is not None:
                found.extend([projection.a, *(b for _, _, b in projection.changed)])
        return [parameter for parameter in found if parameter.requires_grad]

    def _normed_heads(self, qkv: Tensor, keeper: Keeper) -> Tensor:
        """Apply the norms of query and key heads, where there are any."""
        heads = self.heads
        if self.query_norm is None or self.key_norm is None:
            return qkv
        split = qkv.view(len(qkv), heads.all, heads.width)
        cut = heads.queries + heads.keys
        parts = (
            norm(split[:, : heads.queries], self.query_norm, keeper),
            norm(split[:, heads.queries : cut], self.key_norm, keeper),
            split[:, cut:],
        )
        return torch.cat(parts, dim=1).view_as(qkv)


class Decoder:
    """A base model over packed weights, to compute losses and the gradients of adapters.

    Args:
        gguf: the opened base; its file stays mapped while the model lives.
        compute: arithmetic of the frozen layers and of what flows between them: float32 or bfloat16.
        threads: that unpack large weights together.
        context: tokens of the longest sequence; the file's own context where None.
        before_use: called before every use of a frozen weight; it may raise to abandon the computation.
        elementwise: what does the passes over memory; what is fastest here where None.
    """

    def __init__(
        self,
        gguf: GgufModel,
        *,
        compute: torch.dtype = torch.float32,
        threads: int = 1,
        context: int | None = None,
        before_use: Callable[[], None] | None = None,
        elementwise: Elementwise | None = None,
    ) -> None:
        self.gguf = gguf
        self.compute = compute
        self.checkpointing = False
        self._targets = target_modules(gguf)
        self._scratch = Scratch(
            elements=scratch_elements(gguf),
            compute=compute,
            threads=threads,
            before_use=before_use,
            elementwise=elementwise,
        )
        self._embedding = PackedEmbedding(weight=gguf.tensors[EMBEDDING], scale=gguf.config.embedding_scale)
        self._rotaries = _Rotaries(gguf, context or gguf.config.context_length)
        self.blocks = [self._block(layer) for layer in range(gguf.config.n_layers)]
        self._norm = RmsNorm(unpack_vector(gguf.tensors[OUTPUT_NORM]), gguf.config.norm_eps, self._scratch.elementwise)
        self.head = PackedHead(
            weight=gguf.tensors.get(OUTPUT, gguf.tensors[EMBEDDING]),
            scratch=self._scratch,
            rows=logit_rows(gguf, compute.itemsize),
        )

    def hidden(self, given: Pass, *, trunk: Tensor | None = None, first: int = 0, last: int | None = None) -> Tensor:
        """Give the residual stream after some layers, float32 ``(rows, hidden)``.

        Args:
            given: tokens and segments.
            trunk: the residual stream before layer ``first``; None to begin with the embedding.
            first: layer to begin with.
            last: layer to stop before; None for all.
        """
        if torch.is_grad_enabled():
            self._scratch.arena.clear()
        tables = self._rotaries.tables(given.segments)
        x = self._embedding(given.tokens) if trunk is None else trunk
        lowest = next((i for i, block in enumerate(self.blocks) if any(p.a is not None for p in block.projections)), 0)
        for index, block in list(enumerate(self.blocks))[first:last]:
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= lowest):
                if self.checkpointing and torch.is_grad_enabled():
                    x = _checkpointed(block, x, given.segments, tables[block.rotary])
                else:
                    x = block(x, given.segments, tables[block.rotary])
        return x

    def loss(self, given: Pass, *, trunk: Tensor | None = None, first: int = 0) -> Tensor:
        """Give the summed loss over all targets of a pass, in nats: a float32 scalar."""
        x = self.hidden(given, trunk=trunk, first=first)
        places = torch.nonzero(given.targets >= 0)[:, 0]
        if len(places) < len(x):
            x = x[places]
        return self.head.loss(norm(x, self._norm, self._scratch.keeper(), self.compute), given.targets[places])

    def logits(self, given: Pass) -> Tensor:
        """Give the logits of every row, float32 ``(rows, vocab)``, without gradient."""
        with torch.no_grad():
            return self.head.logits(norm(self.hidden(given), self._norm, self._scratch.keeper(), self.compute))

    def _block(self, layer: int) -> Block:
        """Put one layer together from the tensors of the file."""
        config = self.gguf.config
        by_role = {target.role: (path, target) for path, target in self._targets.items() if target.layer == layer}

        def projection(*roles: Role, prologue: Prologue | None = None, halves: bool = False) -> Projection:
            layers = [self._layer(*by_role[role]) for role in roles if role in by_role]
            return Projection(layers, self._scratch, prologue or Plain(), halves)

        return Block(
            qkv=projection("q", "k", "v", "qkv", prologue=self._norm_of(layer, "attn_norm")),
            heads=Heads(
                config.n_heads,
                config.n_kv_heads,
                config.head_dim,
                config.attention_scale,
                config.attention_window(layer),
            ),
            out=projection("o"),
            gate_up=projection("gate", "up", "gate_up", prologue=self._norm_of(layer, "ffn_norm"), halves=True),
            down=projection("down", prologue=Gate(config.activation, self._scratch.elementwise)),
            query_norm=self._norm_of(layer, "attn_q_norm"),
            key_norm=self._norm_of(layer, "attn_k_norm"),
            after_attention=self._norm_of(layer, "post_attention_norm"),
            after_ffn=self._norm_of(layer, "post_ffw_norm"),
            rotary=self._rotaries.of_layer(layer),
        )

    def _layer(self, path: ModulePath, target: TargetModule) -> Layer:
        order = None
        if target.rotary_heads:
            order = model_order(target.out_features, target.rotary_heads)
        bias = None if target.bias is None else unpack_vector(self.gguf.tensors[target.bias])
        if bias is not None and order is not None:
            bias = bias[torch.from_numpy(order)]
        return Layer(path, PackedWeight(self.gguf.tensors[target.tensor], order), bias)

    def _norm_of(self, layer: int, name: str) -> RmsNorm | None:
        tensor = self.gguf.tensors.get(f"blk.{layer}.{name}.weight")
        if tensor is None:
            return None
        return RmsNorm(unpack_vector(tensor), self.gguf.config.norm_eps, self._scratch.elementwise)


class _Rotaries:
    """The tables of turns that a model's layers need: few, because most layers share one."""

    def __init__(self, gguf: GgufModel, context: int) -> None:
        self._distinct = [gguf.rotary(layer, context) for layer in range(gguf.config.n_layers)]
        self._keys = [(r.dimensions, r.magnitude, r.frequencies.tobytes()) for r in self._distinct]
        self._known: tuple[Segments, dict[int, Turns]] | None = None

    def of_layer(self, layer: int) -> int:
        """Give the first layer that turns as this one does."""
        return self._keys.index(self._keys[layer])

    def tables(self, segments: Segments) -> dict[int, Turns]:
        """Give the turns of every row by first layer that uses them; those of the same segments are kept."""
        if self._known is None or self._known[0] != segments:
            positions = segments.positions()
            firsts = {self.of_layer(layer) for layer in range(len(self._keys))}
            self._known = segments, {layer: turns_of(self._distinct[layer], positions) for layer in sorted(firsts)}
        return self._known[1]


def norm(x: Tensor, weights: RmsNorm, keeper: Keeper, compute: torch.dtype | None = None) -> Tensor:
    """Give the norm of ``x`` over its last dimension, in ``compute`` or the type of ``x``."""
    result: Tensor = _Norm.apply(x, weights, keeper, compute or x.dtype)  # type: ignore[no-untyped-call]
    return result


def _normed(x: Tensor, weights: RmsNorm | None, keeper: Keeper) -> Tensor:
    return x if weights is None else norm(x, weights, keeper)


class _Norm(torch.autograd.Function):
    """A norm by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: RmsNorm, keeper: Keeper, compute: torch.dtype) -> Tensor:
        out, kept = weights.forward((x,), compute, keeper)
        ctx.save_for_backward(*kept)
        ctx.weights, ctx.keeper, ctx.wide = weights, keeper, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.keeper.check()
        _, (to_input,) = ctx.weights.backward(ctx.saved_tensors, grads[0])
        return to_input.to(ctx.wide), None, None, None


def gradients_by(out: Tensor, wanted: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Give the gradients that ``grad``, the gradient by ``out``, has by what is wanted.

    As ``torch.autograd.grad``, which imports SymPy once it is given a gradient: half a second, and 30 MB to stay.
    """
    led: Tensor = _Led.apply(out, grad)  # type: ignore[no-untyped-call]
    del out
    return torch.autograd.grad(led, wanted)


class _Led(torch.autograd.Function):
    """A scalar whose gradient by a tensor is a known one."""

    @staticmethod
    def forward(ctx: Any, _out: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


def _checkpointed(block: Block, x: Tensor, segments: Segments, turns: Turns) -> Tensor:
    """Do a block and keep only its input; the rest is computed again (Chen et al. 2016, *Sublinear Memory Cost*)."""
    work = functools.partial(block, segments=segments, turns=turns)
    keeper = block.qkv.scratch.keeper()
    result: Tensor = _Checkpoint.apply(x, work, keeper, *block.parameters())  # type: ignore[no-untyped-call]
    return result


class _Checkpoint(torch.autograd.Function):
    """A block whose inside is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, work: Callable[..., Tensor], keeper: Keeper, *parameters: nn.Parameter) -> Tensor:
        ctx.save_for_backward(keeper.take(x.shape, x.dtype).copy_(x))
        ctx.work, ctx.keeper, ctx.parameters = work, keeper, parameters
        return work(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.keeper.check()
        arena = ctx.keeper.arena
        mark = arena.mark()
        wants_x = ctx.needs_input_grad[0]
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_(wants_x)
            wanted = [*([x] if wants_x else []), *ctx.parameters]
            found = gradients_by(ctx.work(x, product=False), wanted, grads[0])
        arena.back_to(mark)
        to_x, to_parameters = (found[0], found[1:]) if wants_x else (None, found)
        return (to_x, None, None, *to_parameters)
