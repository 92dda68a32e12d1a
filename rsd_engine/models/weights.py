"""The weights of a decoder in the layout it computes with, and how a checkpoint fills them.

q, k and v are one matrix, and so are gate and up: one product reads them all. A checkpoint's tensor
is copied straight into its place in the merged one, so no second copy of the model ever exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig

_NEVER_WEIGHTS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer; a product's matrix is [outputs, inputs]."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [q_width + 2 * kv_width, hidden]
    qkv_bias: Tensor | None  # [q_width + 2 * kv_width]
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    o: Tensor  # [hidden, q_width]
    o_bias: Tensor | None  # [hidden]
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    gate_up_bias: Tensor | None  # [2 * intermediate]
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None  # [hidden]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        matrix_dtype: torch.dtype | None = None,
    ) -> LayerWeights:
        """Unfilled weights; matrices are of `dtype` too unless `matrix_dtype` is given."""

        def empty(*shape: int) -> Tensor:
            of_matrix = matrix_dtype if len(shape) == 2 else None
            return torch.empty(shape, dtype=of_matrix or dtype, device=device)

        hidden, inter, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        qkv = config.q_width + 2 * config.kv_width
        return cls(
            input_norm=empty(hidden),
            qkv=empty(qkv, hidden),
            qkv_bias=empty(qkv) if config.qkv_bias else None,
            q_norm=empty(head_dim) if config.qk_norm else None,
            k_norm=empty(head_dim) if config.qk_norm else None,
            o=empty(hidden, config.q_width),
            o_bias=empty(hidden) if config.o_bias else None,
            post_norm=empty(hidden),
            gate_up=empty(2 * inter, hidden),
            gate_up_bias=empty(2 * inter) if config.mlp_bias else None,
            down=empty(hidden, inter),
            down_bias=empty(hidden) if config.mlp_bias else None,
        )

    def places(self, config: ModelConfig, prefix: str) -> dict[str, Tensor]:
        """Where each tensor of the checkpoint goes."""
        widths = [config.q_width, config.kv_width, config.kv_width]
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        found: dict[str, Tensor | None] = {
            f"{prefix}input_layernorm.weight": self.input_norm,
            f"{prefix}post_attention_layernorm.weight": self.post_norm,
            f"{attention}o_proj.weight": self.o,
            f"{attention}o_proj.bias": self.o_bias,
            f"{attention}q_norm.weight": self.q_norm,
            f"{attention}k_norm.weight": self.k_norm,
            f"{mlp}down_proj.weight": self.down,
            f"{mlp}down_proj.bias": self.down_bias,
        }
        for kind, qkv, gate_up in (
            ("weight", self.qkv, self.gate_up),
            ("bias", self.qkv_bias, self.gate_up_bias),
        ):
            if qkv is not None:
                for name, part in zip("qkv", qkv.split(widths), strict=True):
                    found[f"{attention}{name}_proj.{kind}"] = part
            if gate_up is not None:
                for name, part in zip(("gate", "up"), gate_up.chunk(2), strict=True):
                    found[f"{mlp}{name}_proj.{kind}"] = part
        return {name: place for name, place in found.items() if place is not None}


@dataclass(frozen=True)
class DecoderWeights:
    """Everything up to the final norm, which the heads apply to the rows they need."""

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

    @property
    def dtype(self) -> torch.dtype:
        """In which is computed: that of everything but, perhaps, the matrices."""
        return self.final_norm.dtype

    @property
    def matrix_dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def nbytes(self) -> int:
        layers = [t for layer in self.layers for t in vars(layer).values() if t is not None]
        return sum(tensor.nbytes for tensor in (self.embedding, *layers, self.final_norm))

    def places(self, config: ModelConfig) -> dict[str, Tensor]:
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.final_norm}
        for index, layer in enumerate(self.layers):
            found |= layer.places(config, f"model.layers.{index}.")
        return found


def fill(
    places: dict[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source: str,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Copies every tensor to its place, converting the dtype.

    Args:
        places: name in the checkpoint -> where it goes.
        tensors: the checkpoint's tensors.
        source: name of the model, for messages.
        ignored: names that may be in the checkpoint and are not needed.

    Raises:
        ValueError: naming every tensor that is missing, left over or of another shape.
    """
    waiting, left_over = dict(places), []
    for name, tensor in tensors:
        place = waiting.pop(name, None)
        if place is None:
            if name not in ignored and not _NEVER_WEIGHTS.search(name):
                left_over.append(name)
        elif place.shape != tensor.shape:
            raise ValueError(
                f"model {source!r}: tensor {name} is {list(tensor.shape)}, "
                f"its config asks for {list(place.shape)}"
            )
        else:
            place.copy_(tensor)
    if waiting:
        raise ValueError(f"model {source!r} lacks {_listed(sorted(waiting))}")
    if left_over:
        raise ValueError(f"model {source!r} has tensors with no use: {_listed(sorted(left_over))}")


def _listed(names: list[str], shown: int = 8) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
