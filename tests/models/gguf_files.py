"""Writes tiny GGUF files as llama.cpp's converter would, and finds the one real model tests use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer
from torch import Tensor

from bench.compare.smollm2 import gguf_file
from rsd_engine.models.checkpoints.gguf import TENSOR_NAMES


def write_gguf(
    path: Path,
    model: Any,
    *,
    quantise: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tokenizer: Tokenizer | None = None,
    frequency_factors: Tensor | None = None,
    extra: dict[str, Tensor] | None = None,
    split_max_tensors: int = 0,
    add: Callable[[gguf.GGUFWriter], object] | None = None,
) -> Path:
    """A GGUF file with the weights of a transformers model; norms and biases stay fp32.

    `add` writes more metadata.
    """
    config, family = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, family, split_max_tensors=split_max_tensors)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if family == "qwen3":
        writer.add_key_length(config.head_dim)
    if family == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer)
    if add is not None:
        add(writer)
    if frequency_factors is not None:
        writer.add_tensor("rope_freqs.weight", frequency_factors.numpy())
    tensors = {_gguf_name(name, family): (name, t) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("output.weight")
    for target, (name, tensor) in tensors.items():
        value = tensor.detach()
        if family in ("llama", "granite", "smollm3") and ("q_proj" in name or "k_proj" in name):
            kv = "k_proj" in name
            value = permuted(
                value, config.num_key_value_heads if kv else config.num_attention_heads
            )
        kind = quantise if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(value.contiguous().numpy(), kind)
        writer.add_tensor(target, data, raw_dtype=kind)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(value: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's order of q and k for its llama architecture: halves of a head interleaved."""
    halves = value.reshape(num_heads, 2, value.shape[0] // num_heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def _gguf_name(name: str, family: str) -> str:
    back = {theirs: ours for ours, theirs in TENSOR_NAMES.items()}
    if family != "olmo2":
        back["post_attention_layernorm"] = "ffn_norm"
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{back[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{back[part]}.{kind}"


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str = "smollm") -> None:
    model = json.loads(tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda e: e[1])
    special = {entry["id"] for entry in model["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index in special else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in model["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")


def find_smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, from a 94 MB wheel; skips where it cannot be had."""
    try:
        return gguf_file()
    except ValueError as error:
        pytest.skip(str(error))
