"""A checkpoint and a vocabulary as one GGUF file, quantised to Q8_0."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.seedling.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END
from tools.seedling.model import Shape
from tools.seedling.tokenizer import SPECIAL

NAME = "Bramble Seedling"
DESCRIPTION = (
    "A 4.5 M parameter Llama pre-trained on English documentation from Debian main. It is the base that Bramble ships, "
    "so that fine-tuning, merging and generating can be tried, tested and demonstrated without a download."
)
LICENCE = "Apache-2.0"

_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from halves (Hugging Face) to neighbouring pairs (GGUF's ``llama``)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensor_name(name: str) -> str:
    """The name that a parameter of :class:`~tools.seedling.model.Seedling` has in a GGUF file."""
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        return f"blk.{number}.{_TENSORS[rest]}"
    return _TENSORS[name]


def export(weights: dict[str, Tensor], tokenizer: Path, out: Path, *, shape: Shape, context: int) -> str:
    """Write the model; returns the file's SHA-256.

    Matrices become Q8_0, norms stay float32. There is no ``output.weight``: the embeddings are tied.
    """
    temporary = out.with_suffix(".tmp")
    writer = gguf.GGUFWriter(str(temporary), "llama")
    _describe(writer, shape, context)
    _add_vocabulary(writer, json.loads(tokenizer.read_text("utf-8")))
    for name, stored in weights.items():
        weight = interleaved(stored, shape.heads) if name.endswith(("q_proj.weight", "k_proj.weight")) else stored
        values: npt.NDArray[np.float32] = weight.detach().to(torch.float32).contiguous().numpy()
        if values.ndim == 1:
            writer.add_tensor(tensor_name(name), values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    temporary.replace(out)
    return digest


def _describe(writer: gguf.GGUFWriter, shape: Shape, context: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_basename("Bramble-Seedling")
    writer.add_author("Bramble contributors")
    writer.add_organization("Bramble")
    writer.add_description(DESCRIPTION)
    writer.add_license(LICENCE)
    writer.add_size_label("4.5M")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation"])
    writer.add_context_length(context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, dict[str, object]]) -> None:
    model = tokenizer["model"]
    vocabulary: dict[str, int] = model["vocab"]  # type: ignore[assignment]
    merges: list[list[str] | str] = model["merges"]  # type: ignore[assignment]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    end = vocabulary[END_OF_TEXT]
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_unk_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_eot_token_id(vocabulary[IM_END])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
