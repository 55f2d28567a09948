"""The peer: PEFT on a transformers model with unpacked weights, as a careful user writes it.

    python -m engines.peft_engine RUN.json    (from bench/; the outcome as JSON on the last line of standard output)

The GGUF is unpacked by ggml's own routines into a ``LlamaForCausalLM``, whose attention is torch's fused one (sdpa) and
which is given no padding mask, so that the causal kernel is taken. In bfloat16 the whole model is in that type, and the
adapter in the one that PEFT chooses by default (float32, ``autocast_adapter_dtype``). Loss, optimiser, learning rate,
clipping, order of the windows and the adapter at the start are the same as the other engine's.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agent.llm.adapter import read_adapter
from agent.llm.ggml import dequantize
from agent.llm.gguf_file import EMBEDDING, OUTPUT_NORM, GgufModel, GgufTensor, open_gguf, target_modules
from agent.llm.rotary import model_order
from agent.training.resident import peak_rss_mb
from agent.training.schedule import learning_rate_at, windows_at
from engines.run import ALPHA, GRAD_CLIP, PEAK_LEARNING_RATE, RANK, SEED, TARGETS, Outcome, Run
from engines.shapes import NORM_EPS, SHAPES, Shape

_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def unpacked_model(gguf: GgufModel, shape: Shape, dtype: torch.dtype) -> LlamaForCausalLM:
    """Build the model as ``from_pretrained(..., dtype=dtype)`` would from a folder of unpacked weights."""
    if shape.rope_factors:
        sys.exit(f"{shape.name}: the peer is not written for frequency factors")
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": _unpacked(gguf.tensors[EMBEDDING], dtype),
        "model.norm.weight": _unpacked(gguf.tensors[OUTPUT_NORM], dtype),
    }
    for path, target in target_modules(gguf).items():
        order = model_order(target.out_features, target.rotary_heads) if target.rotary_heads else None
        state[f"{path}.weight"] = _unpacked(gguf.tensors[target.tensor], dtype, order)
    for layer in range(shape.layers):
        for tensor, module in _NORMS.items():
            state[f"model.layers.{layer}.{module}.weight"] = _unpacked(
                gguf.tensors[f"blk.{layer}.{tensor}.weight"], dtype
            )
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        sys.exit(f"the peer's model has no weights for {', '.join(left)}")
    return model


def with_adapter(model: LlamaForCausalLM, run: Run) -> PeftModel:
    """Wrap the model by PEFT and put the starting adapter's numbers in."""
    layers = model.config.num_hidden_layers
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(TARGETS),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        layers_to_transform=None if run.last_layers is None else list(range(layers - run.last_layers, layers)),
    )
    wrapped = get_peft_model(model, config)
    parameters = dict(wrapped.named_parameters())
    start = read_adapter(run.adapter).modules
    with torch.no_grad():
        for name, factors in start.items():
            for letter, values in (("A", factors.a), ("B", factors.b)):
                parameters.pop(f"base_model.model.{name}.lora_{letter}.default.weight").copy_(torch.tensor(values))
    if any(parameter.requires_grad for parameter in parameters.values()):
        sys.exit("the starting adapter is not one for the layers that PEFT adapts")
    return wrapped


def train(run: Run) -> Outcome:
    """Do all steps."""
    torch.set_num_threads(run.threads)
    model = unpacked_model(open_gguf(run.model), SHAPES[run.shape], getattr(torch, run.compute))
    if run.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wrapped = with_adapter(model, run)
    wrapped.train()
    with np.load(run.windows) as archive:
        windows = archive["tokens"]
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=PEAK_LEARNING_RATE, weight_decay=0.0, fused=True)
    ends, losses = [time.perf_counter()], []
    for step in range(run.steps):
        chosen = windows_at(step, batch_size=run.batch, count=len(windows), seed=SEED)
        tokens = torch.from_numpy(windows[chosen].astype(np.int64))
        optimiser.zero_grad(set_to_none=True)
        loss = wrapped(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, GRAD_CLIP)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, steps=run.steps, warmup_steps=0, peak=PEAK_LEARNING_RATE)
        optimiser.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return Outcome(
        step_seconds=[after - before for before, after in itertools.pairwise(ends[1:])],
        whole_seconds=ends[-1] - ends[0],
        losses=losses,
        peak_mb=peak_rss_mb(),
        compute=run.compute,
        adapter_type=str(trained[0].dtype).removeprefix("torch."),
    )


def _unpacked(tensor: GgufTensor, dtype: torch.dtype, order: np.ndarray | None = None) -> torch.Tensor:
    out = np.empty(tensor.shape, np.float32)
    dequantize(tensor.format, tensor.packed, out)
    return torch.from_numpy(out if order is None else out[order]).to(dtype)


def main() -> None:
    """Do the run that the command line names."""
    print(train(Run.model_validate_json(Path(sys.argv[1]).read_bytes())).model_dump_json())


if __name__ == "__main__":
    main()
