"""The weights of a decoder as it computes with them, and where a checkpoint's tensors go.

q, k and v are merged into one weight, and so are gate and up, so that one product computes them. A
checkpoint's tensor is copied straight into its place in the merged one: no second copy of the model
is ever held. Matrices that stay in the bytes of a file are parts of a merged weight, and copied
nowhere; those that stay in few bits on a GPU are packed for it when the weight is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig
from rsd_engine.models.names import ATTENTION_OUT, DOWN, GATE_UP, QKV
from rsd_engine.models.weight_form import listed_by_size, name_of
from rsd_kernels.ahead import ATTENTION_AHEAD_BYTES
from rsd_kernels.formats.weight import StoredMatrix, StoredWeight, Weight
from rsd_kernels.grouped.matrix import GroupedMatrix
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.launch import ceil_div
from rsd_kernels.linear.weight import LinearWeight

EMBEDDING = "model.embed_tokens.weight"

HeadWeight = LinearWeight | StoredWeight
"""An LM head. One that a checkpoint holds in few bits for a GPU is expanded there."""

Grouped = Callable[[Sequence[str]], GroupedMatrix | None]
"""The tensors of these names in few bits, as one matrix; None: they do not stay in them."""


def nothing_grouped(names: Sequence[str]) -> None:
    """Every weight is plain."""
    del names


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer."""

    input_norm: Tensor | None  # [hidden] of what attention reads
    qkv: Weight  # [q_width + 2 * kv_width, hidden]
    q_norm: Tensor | None  # [head_dim], [q_width] if over all heads
    k_norm: Tensor | None  # [head_dim], [kv_width] if over all heads
    o: Weight  # [hidden, q_width]
    attention_out_norm: Tensor | None  # [hidden] of what attention adds
    post_norm: Tensor | None  # [hidden] of what the MLP reads
    gate_up: Weight  # [2 * intermediate, hidden]
    down: Weight  # [hidden, intermediate]
    mlp_out_norm: Tensor | None  # [hidden] of what the MLP adds

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        grouped: Grouped = nothing_grouped,
        prefix: str = "",
    ) -> LayerWeights:
        """Unfilled weights.

        `grouped` is asked for tensors whose names begin with `prefix`.
        """
        vector = partial(torch.empty, dtype=dtype, device=device)

        def linear(
            names: tuple[str, ...], *shape: int, bias: bool = False
        ) -> LinearWeight | GroupedWeight:
            matrix = grouped([f"{prefix}{name}.weight" for name in names])
            if matrix is not None:
                return GroupedWeight(matrix, vector(shape[0]) if bias else None)
            return LinearWeight.allocate(*shape, bias=bias, dtype=dtype, device=device)

        return cls._made(config, vector, linear)

    @classmethod
    def of_stored(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        matrices: Mapping[str, StoredMatrix],
        prefix: str,
    ) -> LayerWeights:
        """Weights of stored matrices, whose names begin with `prefix`; vectors are unfilled."""
        vector = partial(torch.empty, dtype=dtype)

        def linear(names: tuple[str, ...], *shape: int, bias: bool = False) -> StoredWeight:
            parts = tuple(matrices[f"{prefix}{name}.weight"] for name in names)
            return StoredWeight(parts, vector(shape[0]) if bias else None)

        return cls._made(config, vector, linear)

    @classmethod
    def _made(
        cls,
        config: ModelConfig,
        norm: Callable[[int], Tensor],
        linear: Callable[..., Weight],  # (tensors it is merged of, num_outputs, num_inputs, bias)
    ) -> LayerWeights:
        hidden, inter = config.hidden_size, config.intermediate_size
        q_norm, k_norm = config.qk_norm_widths
        return cls(
            input_norm=norm(hidden) if config.pre_norms else None,
            qkv=linear(QKV, config.q_width + 2 * config.kv_width, hidden, bias=config.qkv_bias),
            q_norm=norm(q_norm) if config.qk_norm else None,
            k_norm=norm(k_norm) if config.qk_norm else None,
            o=linear(ATTENTION_OUT, hidden, config.q_width, bias=config.o_bias),
            attention_out_norm=norm(hidden) if config.post_norms else None,
            post_norm=norm(hidden) if config.pre_norms else None,
            gate_up=linear(GATE_UP, 2 * inter, hidden, bias=config.mlp_bias),
            down=linear(DOWN, hidden, inter, bias=config.mlp_bias),
            mlp_out_norm=norm(hidden) if config.post_norms else None,
        )

    def places(self, config: ModelConfig, prefix: str) -> dict[str, Tensor]:
        """Name of a tensor in the checkpoint -> where it goes."""
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
        found = {f"{name}.weight": norm for name, norm in norms.items()}
        linears = (
            (QKV, self.qkv, (config.q_width, config.kv_width, config.kv_width)),
            (GATE_UP, self.gate_up, (config.intermediate_size, config.intermediate_size)),
            (ATTENTION_OUT, self.o, (config.hidden_size,)),
            (DOWN, self.down, (config.hidden_size,)),
        )
        for names, weight, widths in linears:
            found |= _split(names, "bias", weight.bias, widths)
            if isinstance(weight, LinearWeight):
                found |= _split(names, "weight", weight.matrix, widths)
        return {prefix + name: place for name, place in found.items() if place is not None}


@dataclass(frozen=True)
class DecoderWeights:
    """Everything up to the final norm, which is applied only to the rows that a head needs."""

    embedding: Tensor | StoredMatrix  # [vocab_size, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        grouped: Grouped = nothing_grouped,
    ) -> DecoderWeights:
        """Unfilled weights.

        Raises ValueError as `grouped` does.
        """
        shape = (config.vocab_size, config.hidden_size)
        return cls(
            embedding=torch.empty(shape, dtype=dtype, device=device),
            layers=tuple(
                LayerWeights.allocate(config, dtype, device, grouped, f"model.layers.{index}.")
                for index in range(config.num_layers)
            ),
            final_norm=torch.empty(config.hidden_size, dtype=dtype, device=device),
        )

    def in_order(self) -> DecoderWeights:
        """The same weights, each of which names the one that a pass reads after it."""
        layers = []
        for layer, following in zip(self.layers, (*self.layers[1:], None), strict=True):
            down = layer.down if following is None else _before(layer.down, following.qkv)
            layers.append(
                replace(
                    layer,
                    qkv=_before(layer.qkv, layer.o),
                    o=_before(layer.o, layer.gate_up, skip=ATTENTION_AHEAD_BYTES),
                    gate_up=_before(layer.gate_up, layer.down),
                    down=down,
                )
            )
        return replace(self, layers=tuple(layers))

    @classmethod
    def of_stored(
        cls, config: ModelConfig, dtype: torch.dtype, matrices: Mapping[str, StoredMatrix]
    ) -> DecoderWeights:
        """Weights of stored matrices by their names; vectors are unfilled."""
        return cls(
            embedding=matrices[EMBEDDING],
            layers=tuple(
                LayerWeights.of_stored(config, dtype, matrices, f"model.layers.{index}.")
                for index in range(config.num_layers)
            ),
            final_norm=torch.empty(config.hidden_size, dtype=dtype),
        )

    def tied_head(self) -> HeadWeight:
        """The LM head that is the embedding."""
        if isinstance(self.embedding, StoredMatrix):
            return StoredWeight((self.embedding,))
        return LinearWeight(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of computation, and of every tensor but perhaps the matrices."""
        return self.final_norm.dtype

    @property
    def held_in(self) -> str:
        """What the matrices are held in: "bfloat16", "Q4_K and Q6_K"."""
        linears = [
            w for layer in self.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)
        ]
        tables = [self.embedding, *(part for weight in linears for part in weight.tables)]
        return listed_by_size((name_of(table), table.nbytes) for table in tables)

    @property
    def nbytes(self) -> int:
        layers = [w for layer in self.layers for w in vars(layer).values() if w is not None]
        return sum(weight.nbytes for weight in (self.embedding, *layers, self.final_norm))

    def places(self, config: ModelConfig) -> dict[str, Tensor]:
        """Name of a tensor in the checkpoint -> where it goes."""
        found = {"model.norm.weight": self.final_norm}
        if isinstance(self.embedding, Tensor):
            found[EMBEDDING] = self.embedding
        for index, layer in enumerate(self.layers):
            found |= layer.places(config, f"model.layers.{index}.")
        return found


def matrix_in_memory(weight: Weight) -> Tensor | None:
    """[num_outputs, elements of a row]; None of one in a file, which CPUs read, who look ahead."""
    return None if isinstance(weight, StoredWeight) else weight.stored


def _before(weight: Weight, following: Weight, *, skip: int = 0) -> Weight:
    """The weight, which knows the next but for so many bytes of it, which attention has fetched."""
    matrix = matrix_in_memory(following)
    if isinstance(weight, StoredWeight) or matrix is None:
        return weight
    first = ceil_div(skip, matrix.shape[1] * matrix.itemsize)
    if first >= len(matrix):
        return weight.before(None)
    return weight.before(matrix[first:] if first else matrix)


def _split(
    names: Sequence[str], kind: str, merged: Tensor | None, widths: Sequence[int]
) -> dict[str, Tensor | None]:
    """Views of a merged tensor by the names of its parts; a whole one is itself, to be set."""
    parts = [merged] if merged is None or len(names) == 1 else merged.split(list(widths))
    return {f"{name}.{kind}": part for name, part in zip(names, parts, strict=False)}
