"""One decoder for all families in `models.decoders`, over the packed rows of a pass.

A forward reads the rows of a pass, writes their K and V into pages and attends over the page table.
It advances no cursor: what it wrote counts only once the loop says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.rope_config import RopeConfig
from rsd_engine.models.weights import DecoderWeights, LayerWeights, matrix_in_memory
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.cpu.decoder import DecoderParts
from rsd_kernels.formats.weight import Weight
from rsd_kernels.model_ops import model_ops
from rsd_kernels.state.rows import RowBatch

_LOG = logging.getLogger(__name__)


class Decoder:
    """A model from token ids up to the final norm.

    Args:
        config: the architecture.
        weights: filled weights, all on one device.
        max_rows: most rows a pass may have.
        max_positions: length of the rope tables; later positions are not supported. It also
            chooses between the short and the long factors of longrope.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        max_rows: int,
        max_positions: int | None = None,
    ) -> None:
        self.config = config
        self.weights = weights.in_order()
        self.dtype = weights.dtype
        self.device = weights.embedding.device
        self.activations = Activations.allocate(config, max_rows, self.dtype, self.device)
        self.ops = model_ops(weights.final_norm, scheduled=True)
        heads = (config.num_q_heads, config.num_kv_heads, config.head_dim)
        self.scratch = self.ops.attention_scratch(max_rows, *heads, self.dtype, self.device)
        self.max_positions = max_positions or config.max_position_embeddings
        self._rope_tables: dict[RopeConfig, tuple[Tensor, Tensor]] = {}
        for rope in set(config.ropes):
            if rope.type == "longrope":
                _LOG.info(
                    "LongRoPE: the %s factors, for a context of %d where the original is %d",
                    rope.factors_for(self.max_positions), self.max_positions,
                    rope.original_max_position,
                )  # fmt: skip
            cos, sin = rope.tables(config.head_dim, self.max_positions)
            self._rope_tables[rope] = cos.to(self.device), sin.to(self.device)
        self._whole = self.ops.whole_decoder(self._parts())

    def _parts(self) -> DecoderParts:
        config, weights = self.config, self.weights
        return DecoderParts(
            embedding=weights.embedding,
            layers=weights.layers,
            sliding_windows=config.sliding_windows,
            rope_tables=[self._rope_tables[rope] for rope in config.ropes],
            buffers=self.activations,
            num_q_heads=config.num_q_heads,
            num_kv_heads=config.num_kv_heads,
            eps=config.rms_norm_eps,
            scale=config.attention_scale,
            embedding_scale=config.embedding_scale,
            gelu=config.gelu,
        )

    @property
    def is_whole(self) -> bool:
        """True if all layers run as one call."""
        return self._whole is not None

    def forward(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32: page of tokens [p * tokens_per_page, ..) of a slot
    ) -> Tensor:
        """Runs the N rows of `batch` through all layers and writes their K and V into the pages.

        Returns:
            [N, hidden] before the final norm, in a buffer of this model: valid until its next pass.

        Raises:
            ValueError: if the batch has more than `max_rows` rows.
        """
        if batch.num_rows > self.activations.max_rows:
            raise ValueError(
                f"a pass has {batch.num_rows} rows; at most {self.activations.max_rows} fit"
            )
        if self._whole is not None:
            self._whole.forward(batch, kv, page_table)
            return self.activations.hidden[: batch.num_rows]
        shared = self._begin(batch, kv, page_table)
        for index, layer in enumerate(self.weights.layers):
            self._qkv(index, layer, shared, batch, kv)
            self._attention(index, layer, shared, kv)
            self._mlp(layer, shared.buffers)
        return shared.buffers.hidden

    def _begin(self, batch: RowBatch, kv: PagedKV, page_table: Tensor) -> _Shared:
        """Embeds the rows, and prepares what all layers share."""
        config = self.config
        buffers = self.activations.narrow(batch.num_rows)
        table, scale = self.weights.embedding, config.embedding_scale
        self.ops.embed(table, batch.token, scale=scale, out=buffers.hidden)
        heads = buffers.qkv.view(batch.num_rows, -1, config.head_dim)
        return _Shared(
            buffers=buffers,
            heads=heads,
            q=heads[:, : config.num_q_heads],
            attended=buffers.attended.view(batch.num_rows, -1, config.head_dim),
            angles={
                rope: self.ops.rope_angles(*tables, batch.position)
                for rope, tables in self._rope_tables.items()
            },
            key_maps={
                window: self.ops.attention_map(
                    batch, page_table, kv.tokens_per_page, window, self.dtype, self.scratch
                )
                for window in set(config.sliding_windows)
            },
        )

    def _qkv(
        self, index: int, layer: LayerWeights, shared: _Shared, batch: RowBatch, kv: PagedKV
    ) -> None:
        """Leaves q in `shared.q`, and k and v in the pages."""
        config, buffers = self.config, shared.buffers
        cos, sin, position = shared.angles[config.ropes[index]]
        where = (kv.k[index], kv.v[index], batch.page, batch.offset, cos, sin)
        read = (buffers.hidden, layer.input_norm, config.rms_norm_eps, layer.qkv)
        if not config.qk_norm_whole:
            self.ops.qkv_projection(
                *read, shared.heads, *where, position=position, q_norm=layer.q_norm,
                k_norm=layer.k_norm, normed=buffers.normed,
            )  # fmt: skip
            return
        self.ops.norm_linear(*read, normed=buffers.normed, out=buffers.qkv)
        q, k, _ = buffers.qkv.split((config.q_width, config.kv_width, config.kv_width), dim=1)
        self.ops.rms_norm(q, layer.q_norm, config.rms_norm_eps, out=q)
        self.ops.rms_norm(k, layer.k_norm, config.rms_norm_eps, out=k)
        self.ops.rope_kv_write(shared.heads, *where, position=position)

    def _attention(self, index: int, layer: LayerWeights, shared: _Shared, kv: PagedKV) -> None:
        config, buffers = self.config, shared.buffers
        key_map = shared.key_maps[config.sliding_windows[index]]
        self.ops.paged_attention(
            shared.q, kv.k[index], kv.v[index], key_map, scale=config.attention_scale,
            out=shared.attended, ahead=matrix_in_memory(layer.gate_up),
        )  # fmt: skip
        self._add(buffers.attended, layer.o, layer.attention_out_norm, buffers)

    def _mlp(self, layer: LayerWeights, buffers: Activations) -> None:
        self.ops.norm_gate_up(
            buffers.hidden, layer.post_norm, self.config.rms_norm_eps, layer.gate_up,
            gelu=self.config.gelu, normed=buffers.normed, gate_up=buffers.gate_up,
            out=buffers.gated,
        )  # fmt: skip
        self._add(buffers.gated, layer.down, layer.mlp_out_norm, buffers)

    def _add(self, x: Tensor, weight: Weight, norm: Tensor | None, buffers: Activations) -> None:
        """Adds x Wᵀ + bias to the residual stream, normed where the family norms it."""
        hidden, eps = buffers.hidden, self.config.rms_norm_eps
        if norm is None:
            self.ops.linear(x, weight, residual=hidden, out=hidden)
        else:
            self.ops.linear(x, weight, out=buffers.normed)
            self.ops.rms_norm(buffers.normed, norm, eps, residual=hidden, out=hidden)


def page_multiple(dtype: torch.dtype, device: torch.device) -> int:
    """What the tokens of a page should be a multiple of, for a decoder of this dtype."""
    return model_ops(torch.empty(0, dtype=dtype, device=device), scheduled=True).page_multiple


@dataclass(frozen=True)
class _Shared:
    """What the layers share in one pass. `q` is a view of `heads`, and `heads` of `buffers.qkv`."""

    buffers: Activations
    heads: Tensor  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v
    q: Tensor  # [N, num_q_heads, head_dim]
    attended: Tensor  # [N, num_q_heads, head_dim]
    # For each rotation among the layers: cos and sin [N or num_positions, head_dim], and position
    # [N], the row of them that row n takes, or None: row n.
    angles: dict[RopeConfig, tuple[Tensor, Tensor, Tensor | None]]
    key_maps: dict[int | None, AttentionMap]  # one for each sliding window among the layers
