"""The weights of a decoder as it computes with them, and where a checkpoint's tensors go.

q, k and v are merged into one weight, and so are gate and up, so that one product computes them. A
checkpoint's tensor is copied straight into its place in the merged one: no second copy of the model
is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig
from rsd_kernels.linear.weight import LinearWeight


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer."""

    input_norm: Tensor | None  # [hidden] of what attention reads
    qkv: LinearWeight  # [q_width + 2 * kv_width, hidden]
    q_norm: Tensor | None  # [head_dim], [q_width] if over all heads
    k_norm: Tensor | None  # [head_dim], [kv_width] if over all heads
    o: LinearWeight  # [hidden, q_width]
    attention_out_norm: Tensor | None  # [hidden] of what attention adds
    post_norm: Tensor | None  # [hidden] of what the MLP reads
    gate_up: LinearWeight  # [2 * intermediate, hidden]
    down: LinearWeight  # [hidden, intermediate]
    mlp_out_norm: Tensor | None  # [hidden] of what the MLP adds

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        matrix_dtype: torch.dtype | None = None,
    ) -> LayerWeights:
        """Unfilled weights; matrices are of `dtype` too unless `matrix_dtype` is given."""
        norm = partial(torch.empty, dtype=dtype, device=device)
        linear = partial(
            LinearWeight.allocate, dtype=dtype, matrix_dtype=matrix_dtype, device=device
        )
        hidden, inter = config.hidden_size, config.intermediate_size
        q_norm, k_norm = config.qk_norm_widths
        return cls(
            input_norm=norm(hidden) if config.pre_norms else None,
            qkv=linear(config.q_width + 2 * config.kv_width, hidden, bias=config.qkv_bias),
            q_norm=norm(q_norm) if config.qk_norm else None,
            k_norm=norm(k_norm) if config.qk_norm else None,
            o=linear(hidden, config.q_width, bias=config.o_bias),
            attention_out_norm=norm(hidden) if config.post_norms else None,
            post_norm=norm(hidden) if config.pre_norms else None,
            gate_up=linear(2 * inter, hidden, bias=config.mlp_bias),
            down=linear(hidden, inter, bias=config.mlp_bias),
            mlp_out_norm=norm(hidden) if config.post_norms else None,
        )

    def places(self, config: ModelConfig, prefix: str) -> dict[str, Tensor]:
        """Name of a tensor in the checkpoint -> where it goes."""
        q, k, v = self.qkv.split(config.q_width, config.kv_width, config.kv_width)
        gate, up = self.gate_up.split(config.intermediate_size, config.intermediate_size)
        norms = {
            "input_layernorm": self.input_norm,
            "self_attn.q_norm": self.q_norm,
            "self_attn.k_norm": self.k_norm,
        }
        # In transformers the name for the MLP's input became that of attention's output.
        if config.post_norms:
            norms["post_attention_layernorm"] = self.attention_out_norm
            norms["pre_feedforward_layernorm"] = self.post_norm
            norms["post_feedforward_layernorm"] = self.mlp_out_norm
        else:
            norms["post_attention_layernorm"] = self.post_norm
        linears = {
            "self_attn.o_proj": self.o,
            "mlp.down_proj": self.down,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
        }
        found = {f"{name}.weight": norm for name, norm in norms.items()}
        found |= {f"{name}.weight": weight.matrix for name, weight in linears.items()}
        found |= {f"{name}.bias": weight.bias for name, weight in linears.items()}
        return {prefix + name: place for name, place in found.items() if place is not None}


@dataclass(frozen=True)
class DecoderWeights:
    """Everything up to the final norm, which is applied only to the rows that a head needs."""

    embedding: Tensor  # [vocab_size, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        matrix_dtype: torch.dtype | None = None,
    ) -> DecoderWeights:
        """Unfilled weights; matrices are of `dtype` too unless `matrix_dtype` is given."""
        shape = (config.vocab_size, config.hidden_size)
        return cls(
            embedding=torch.empty(shape, dtype=matrix_dtype or dtype, device=device),
            layers=tuple(
                LayerWeights.allocate(config, dtype, device, matrix_dtype)
                for _ in range(config.num_layers)
            ),
            final_norm=torch.empty(config.hidden_size, dtype=dtype, device=device),
        )

    def in_order(self) -> DecoderWeights:
        """The same weights, each of which names the one that a pass reads after it."""
        layers = []
        for layer, following in zip(self.layers, (*self.layers[1:], None), strict=True):
            down = layer.down if following is None else layer.down.before(following.qkv)
            layers.append(
                replace(
                    layer,
                    qkv=layer.qkv.before(layer.o),
                    o=layer.o.before(layer.gate_up),
                    gate_up=layer.gate_up.before(layer.down),
                    down=down,
                )
            )
        return replace(self, layers=tuple(layers))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of computation, and of every tensor but perhaps the matrices."""
        return self.final_norm.dtype

    @property
    def matrix_dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def nbytes(self) -> int:
        layers = [w for layer in self.layers for w in vars(layer).values() if w is not None]
        return sum(weight.nbytes for weight in (self.embedding, *layers, self.final_norm))

    def places(self, config: ModelConfig) -> dict[str, Tensor]:
        """Name of a tensor in the checkpoint -> where it goes."""
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.final_norm}
        for index, layer in enumerate(self.layers):
            found |= layer.places(config, f"model.layers.{index}.")
        return found
