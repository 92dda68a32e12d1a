"""Reads a GGUF file (llama.cpp's format) as if it were a Hugging Face folder.

On a CPU matrices stay in the mapped file, in blocks as they are, and products are made of those.
Elsewhere, and of formats that the CPU library does not know, quantised tensors are expanded when
they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import Checkpoint, StoredTensor
from rsd_engine.models.checkpoints.gguf_file import BlockType, GgufFile, GgufTensor
from rsd_engine.models.checkpoints.gguf_tokenizer import gguf_tokenizer, special_ids
from rsd_engine.models.decoders.family import DecoderFamily
from rsd_engine.models.registry import decoder_families
from rsd_engine.models.schemas import ModelSchema
from rsd_kernels.formats.formats import FORMATS
from rsd_kernels.formats.weight import StoredMatrix

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",  # in place of the one before (OLMo 2)
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN_FILE_TYPES = {0: "float32", 1: "float16"}


class GgufCheckpoint(Checkpoint):
    """A GGUF file of an architecture in `models.decoders`, or any part of a split one."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._gguf = _import_gguf(path)
        sizes = self._gguf.GGML_QUANT_SIZES
        file = GgufFile.open(path, {k: BlockType(k.name, *size) for k, size in sizes.items()})
        self.path = file.path
        self._fields = file.fields
        self._tensors = file.tensors

    def field(self, name: str) -> Any:
        """A value of the file's metadata, None where it is not given."""
        return self._fields.get(name)

    @cached_property
    def _family(self) -> DecoderFamily:
        name = self.field("general.architecture")
        sliding = bool(self.field(f"{name}.attention.sliding_window"))
        known = [(f.gguf, f) for f in decoder_families().values() if f.gguf is not None]
        for rules, family in known:
            if rules.architecture == name and rules.sliding_window in (None, sliding):
                return family
        allowed = ", ".join(sorted({rules.architecture for rules, _ in known}))
        raise ValueError(f"GGUF architecture {name!r} is not supported; one of {allowed}")

    def _value(self, name: str) -> Any:
        """One of the architecture's own values."""
        return self.field(f"{self.field('general.architecture')}.{name}")

    def config(self) -> Mapping[str, Any]:
        given = {key: self._value(name) for key, name in _SIZES.items()}
        config = {key: found for key, found in given.items() if found is not None}
        window = self._value("attention.sliding_window")
        # llama.cpp has no switch for biases: the file holds them or not. A window is that of every
        # layer.
        config |= {
            "architectures": [self._family.architecture],
            "vocab_size": self._tensor("token_embd.weight").shape[0],
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._tensors,
            "sliding_window": window,
            "use_sliding_window": window is not None,
            "max_window_layers": 0,
            "rope_scaling": self._rope_scaling(),
            "dtype": _PLAIN_FILE_TYPES.get(self.field("general.file_type"), "bfloat16"),
            **self._rotated_share(),
            **self.overrides,
        }
        return ModelSchema.read(config, "the file's metadata")

    def _rotated_share(self) -> dict[str, float]:
        """The share of a head that is rotated, where it is not all of it."""
        rotated, size = self._value("rope.dimension_count"), self._value("attention.key_length")
        heads, width = (self._value(_SIZES[k]) for k in ("num_attention_heads", "hidden_size"))
        if not all(isinstance(value, int) and value for value in (rotated, heads, width)):
            return {}
        share = rotated / (size or width // heads)
        return {} if share == 1 else {"partial_rotary_factor": share}

    def _rope_scaling(self) -> dict[str, Any]:
        factor = self._value("rope.scaling.factor") or self._value("rope.scale_linear")  # the old
        kind = self._value("rope.scaling.type") or ("linear" if factor else "none")
        original = self._value("rope.scaling.original_context_length")
        scaling: dict[str, Any] = {"rope_type": "default"}
        if kind != "none":
            scaling = {"rope_type": kind, "factor": factor}
            scaling["original_max_position_embeddings"] = original
        attention = self._value("rope.scaling.attn_factor") or 1.0
        if attention != 1.0:
            raise ValueError(f"rope.scaling.attn_factor={attention} is not supported; only 1")
        if _ROPE_FACTORS in self._tensors:  # how llama.cpp stores the llama3 scaling
            if kind != "none":
                raise ValueError(f"{_ROPE_FACTORS} beside rope scaling {kind!r} is not supported")
            factors = self._read(_ROPE_FACTORS)
            scaling["frequency_factors"] = factors.flatten().tolist()
        return scaling

    def tensors(self) -> Mapping[str, StoredTensor]:
        found = {}
        for name, tensor in self._tensors.items():
            if name == _ROPE_FACTORS:
                continue
            stem, _, kind = name.rpartition(".")
            block, _, part = stem.rpartition(".")
            prefix = f"model.layers.{block.removeprefix('blk.')}." if block else ""
            found[f"{prefix}{TENSOR_NAMES.get(part, part)}.{kind}"] = StoredTensor(
                shape=tensor.shape,
                dtype=_PLAIN_TYPES.get(self._kind(tensor), torch.float32),
                file=tensor.file,
                nbytes=tensor.data.nbytes,
                read=partial(self._read, name, part),
                packing=None if self._kind(tensor) in _PLAIN_TYPES else self._kind(tensor),
                stored=self._as_stored(name, part),
            )
        return found

    def weight_files(self) -> tuple[Path, ...]:
        names = {tensor.file for tensor in self._tensors.values()}
        return tuple(self.path.parent / name for name in sorted(names))

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self._tensors:
            raise ValueError(f"GGUF file {str(self.path)!r} lacks tensor {name}")
        return self._tensors[name]

    def _kind(self, tensor: GgufTensor) -> str:
        return str(self._gguf.GGMLQuantizationType(tensor.type).name)

    def _read(self, name: str, part: str = "") -> Tensor:
        """The tensor, expanded to fp32 if it is quantised, in transformers' order."""
        tensor = self._tensors[name]
        dtype = _PLAIN_TYPES.get(self._kind(tensor))
        if dtype is None:
            value = self._expand(name, tensor)
        else:
            value = torch.from_numpy(tensor.data).view(dtype).view(tensor.shape)
        return self._in_order(value, part)

    def _in_order(self, value: Tensor, part: str) -> Tensor:
        """Rows in transformers' order."""
        rules = self._family.gguf
        if rules is not None and rules.paired_heads and part in ("attn_q", "attn_k"):
            return self._unpermuted(value, part)
        return value

    def _as_stored(self, name: str, part: str) -> Callable[[], StoredMatrix] | None:
        """How a quantised matrix is read in blocks, None where it is none or of other blocks."""
        tensor = self._tensors[name]
        form = FORMATS.get(self._kind(tensor))
        if form is None or form.dtype is not None or len(tensor.shape) != 2:
            return None
        rows = torch.from_numpy(tensor.data).view(tensor.shape[0], -1)
        return lambda: StoredMatrix(form, self._in_order(rows, part), tensor.shape[1])

    def _expand(self, name: str, tensor: GgufTensor) -> Tensor:
        kind = self._gguf.GGMLQuantizationType(tensor.type)
        try:
            values = self._gguf.quants.dequantize(tensor.data, kind)
        except NotImplementedError as error:
            raise ValueError(
                f"GGUF file {str(self.path)!r}: tensor {name} is stored as {kind.name}, which the "
                "gguf package cannot expand"
            ) from error
        return torch.from_numpy(values).float().view(tensor.shape)

    def _unpermuted(self, value: Tensor, part: str) -> Tensor:
        """Rows in transformers' order, where the file has that of `GgufRules.paired_heads`."""
        heads = "attention.head_count" if part == "attn_q" else "attention.head_count_kv"
        num_heads = int(self._value(heads) or self._value("attention.head_count"))
        pairs = value.view(num_heads, -1, 2, *value.shape[1:])
        return pairs.transpose(1, 2).reshape(value.shape)

    def tokenizer(self) -> Any:
        return gguf_tokenizer(self.path, self.field)

    def generation_config(self) -> dict[str, Any] | None:
        """Its ids; the ends of text, of a turn and of a message all end an output."""
        ids = special_ids(self.field)
        found: dict[str, Any] = {
            f"{name}_token_id": ids[key]
            for name, key in (("bos", "bos"), ("pad", "padding"))
            if key in ids
        }
        ends = sorted({ids[key] for key in ("eos", "eot", "eom") if key in ids})
        if ends:
            found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        return found or None


def _import_gguf(path: Path) -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the gguf package: pip install 'rsd-engine[gguf]'"
        ) from error
    return gguf
