"""GGUF files of real sizes with random blocks of Q4_K, written in seconds: nothing is quantised.

A block's minimum is 7.5 times its scale, so that values lie around zero, and the scale makes
outputs about as large as inputs. Such weights are finite and mean nothing: only costs count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from bench.lib.random_models import random_tokenizer
from rsd_engine.models.reward.versa_prm import VERSA_PRM
from rsd_engine.roofline.presets import PRESETS
from rsd_kernels.formats.formats import Q4_K

# The PRM is known by its name; the token after its steps is one that Qwen's tokenizer has too.
PRM_NAME, _STEP_END = VERSA_PRM.name.lower(), " \n\n\n\n"
_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1  # token types of llama.cpp
_SPREAD = 168.3  # standard deviation of scale * (value - 7.5), both uniform: 0 to 63, 0 to 15
_CONTEXT = 4096


class Sizes(NamedTuple):
    """Configs with the keys of a config.json, all of Qwen2's architecture."""

    draft: Mapping[str, Any]
    target: Mapping[str, Any]
    prm: Mapping[str, Any]
    num_tokens: int


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    fill: float | None = None  # None: random blocks


LARGE = Sizes(
    PRESETS["qwen2.5-1.5b"], PRESETS["qwen2.5-7b"], PRESETS["qwen2.5-1.5b"], num_tokens=151665
)
_TINY = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
TINY = Sizes(_TINY, {**_TINY, "tie_word_embeddings": False}, _TINY, num_tokens=300)


def write_models(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """Files of draft, target and PRM by role; those that are there already are kept."""
    paths = {}
    for seed, role in enumerate(("draft", "target", "prm")):
        name = f"{PRM_NAME}-random" if role == "prm" else f"{role}-random"
        paths[role] = folder / f"{name}.gguf"
        if not paths[role].exists():
            _write(paths[role], getattr(sizes, role), sizes.num_tokens, seed)
    return paths


def num_bytes(sizes: Sizes) -> int:
    """Of the three files, tokenizers left out."""
    configs = (sizes.draft, sizes.target, sizes.prm)
    return sum(_bytes_of(tensor) for config in configs for tensor in _tensors(config))


def _write(path: Path, config: Mapping[str, Any], num_tokens: int, seed: int) -> None:
    """Written under another name first, so that a file is complete if it is there."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_context_length(_CONTEXT)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    _add_tokenizer(writer, num_tokens)
    tensors = list(_tensors(config))
    for tensor in tensors:
        blocks = tensor.fill is None
        kind = gguf.GGMLQuantizationType.Q4_K if blocks else gguf.GGMLQuantizationType.F32
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, _bytes_of(tensor), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.SFC64(seed))
    for tensor in tensors:
        writer.write_tensor_data(_drawn(tensor, random))
    writer.close()
    part.rename(path)


def _tensors(config: Mapping[str, Any]) -> Iterator[_Tensor]:
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield _Tensor("token_embd.weight", (config["vocab_size"], hidden))
    for layer in range(config["num_hidden_layers"]):
        block = f"blk.{layer}."
        yield _Tensor(f"{block}attn_norm.weight", (hidden,), 1)
        for part, outputs in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)):
            yield _Tensor(f"{block}{part}.weight", (outputs, hidden))
            yield _Tensor(f"{block}{part}.bias", (outputs,), 0)
        yield _Tensor(f"{block}attn_output.weight", (hidden, hidden))
        yield _Tensor(f"{block}ffn_norm.weight", (hidden,), 1)
        yield _Tensor(f"{block}ffn_gate.weight", (inter, hidden))
        yield _Tensor(f"{block}ffn_up.weight", (inter, hidden))
        yield _Tensor(f"{block}ffn_down.weight", (hidden, inter))
    yield _Tensor("output_norm.weight", (hidden,), 1)
    if not config["tie_word_embeddings"]:
        yield _Tensor("output.weight", (config["vocab_size"], hidden))


def _bytes_of(tensor: _Tensor) -> int:
    if tensor.fill is not None:
        return 4 * tensor.shape[0]
    return tensor.shape[0] * Q4_K.row_bytes(tensor.shape[1])


def _drawn(tensor: _Tensor, random: np.random.Generator) -> np.ndarray[Any, Any]:
    if tensor.fill is not None:
        return np.full(tensor.shape, tensor.fill, np.float32)
    num_outputs, num_inputs = tensor.shape
    return random_blocks(num_outputs, num_inputs, random)


def random_blocks(
    num_outputs: int, num_inputs: int, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """[num_outputs, bytes of a row] uint8: rows of Q4_K with a deviation of num_inputs ** -0.5.

    A block has d and dmin (fp16), 8 scales and 8 minima of 6 bits in 12 bytes, and 256 values of 4
    bits; a weight is d * scale * value - dmin * minimum (ggml-common.h of llama.cpp). Here minima
    equal scales and dmin is 7.5 d.
    """
    shape = (num_outputs, num_inputs // Q4_K.block_length, Q4_K.block_bytes)
    words = random.integers(0, 2**64, np.prod(shape) // 8, np.uint64)
    blocks = words.view(np.uint8).reshape(shape)
    d = num_inputs**-0.5 / _SPREAD
    blocks[..., :4] = np.array([d, 7.5 * d], np.float16).view(np.uint8)
    blocks[..., 8:12] = blocks[..., 4:8]  # six bits of the first four, two of the others
    blocks[..., 12:16] &= 15
    blocks[..., 12:16] *= 17  # the other four bits of scale and minimum
    return blocks.reshape(num_outputs, -1)


def _add_tokenizer(writer: gguf.GGUFWriter, num_tokens: int) -> None:
    """Byte-level BPE as in `random_tokenizer`, and the token that the PRM reads after a step."""
    made = random_tokenizer(num_tokens - 1)
    tokens, special = (
        made.convert_ids_to_tokens(list(range(len(made)))),
        set(made.all_special_tokens),
    )
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, _STEP_END])
    writer.add_token_types(
        [*(_CONTROL if t in special else _NORMAL for t in tokens), _USER_DEFINED]
    )
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokens.index(made.eos_token))
    writer.add_bos_token_id(tokens.index(made.bos_token))
    writer.add_add_bos_token(False)
