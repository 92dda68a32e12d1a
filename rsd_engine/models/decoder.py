"""One decoder for Llama, Mistral, Qwen2 and Qwen3, over the packed rows of a pass.

A forward reads the rows of a pass, writes their K and V into pages and attends over the page table.
It advances no cursor: what it wrote counts only once the loop says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weights import DecoderWeights, LayerWeights
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.cpu.decoder import DecoderParts
from rsd_kernels.model_ops import model_ops
from rsd_kernels.rope.tables import rope_tables
from rsd_kernels.state.rows import RowBatch


class Decoder:
    """A model from token ids up to the final norm.

    Args:
        config: the architecture.
        weights: filled weights, all on one device.
        max_rows: most rows a pass may have.
        max_positions: length of the rope tables; later positions are not supported.
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
        self.weights = weights
        self.dtype = weights.dtype
        self.device = weights.embedding.device
        self.activations = Activations.allocate(config, max_rows, self.dtype, self.device)
        self.ops = model_ops(weights.final_norm, scheduled=True)
        heads = (config.num_q_heads, config.num_kv_heads, config.head_dim)
        size = self.ops.attention_scratch_size(max_rows, *heads, self.dtype)
        self.scratch = torch.empty(size, dtype=torch.float32, device=self.device)
        self._scale = config.head_dim**-0.5
        inv_freq = config.rope.inv_freq(config.head_dim)
        positions = max_positions or config.max_position_embeddings
        cos, sin = rope_tables(inv_freq, positions, config.rope.attention_factor)
        self._cos, self._sin = cos.to(self.device), sin.to(self.device)
        self._whole = self.ops.whole_decoder(self._parts())

    def _parts(self) -> DecoderParts:
        config, weights = self.config, self.weights
        return DecoderParts(
            embedding=weights.embedding,
            layers=weights.layers,
            sliding_windows=config.sliding_windows,
            cos=self._cos,
            sin=self._sin,
            buffers=self.activations,
            num_q_heads=config.num_q_heads,
            num_kv_heads=config.num_kv_heads,
            eps=config.rms_norm_eps,
            scale=self._scale,
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
            self._attention(index, layer, shared, batch, kv)
            self._mlp(layer, shared.buffers)
        return shared.buffers.hidden

    def _begin(self, batch: RowBatch, kv: PagedKV, page_table: Tensor) -> _Shared:
        """Embeds the rows, and prepares what all layers share."""
        config = self.config
        buffers = self.activations.narrow(batch.num_rows)
        self.ops.embed(self.weights.embedding, batch.token, out=buffers.hidden)
        cos, sin, position = self.ops.rope_angles(self._cos, self._sin, batch.position)
        heads = buffers.qkv.view(batch.num_rows, -1, config.head_dim)
        return _Shared(
            buffers=buffers,
            heads=heads,
            q=heads[:, : config.num_q_heads],
            attended=buffers.attended.view(batch.num_rows, -1, config.head_dim),
            cos=cos,
            sin=sin,
            position=position,
            key_maps={
                window: self.ops.attention_map(
                    batch, page_table, kv.tokens_per_page, window, self.dtype, self.scratch
                )
                for window in set(config.sliding_windows)
            },
        )

    def _attention(
        self, index: int, layer: LayerWeights, shared: _Shared, batch: RowBatch, kv: PagedKV
    ) -> None:
        buffers, k_pages, v_pages = shared.buffers, kv.k[index], kv.v[index]
        self.ops.qkv_projection(
            buffers.hidden, layer.input_norm, self.config.rms_norm_eps, layer.qkv, shared.heads,
            k_pages, v_pages, batch.page, batch.offset, shared.cos, shared.sin,
            position=shared.position, q_norm=layer.q_norm, k_norm=layer.k_norm,
            normed=buffers.normed,
        )  # fmt: skip
        key_map = shared.key_maps[self.config.sliding_windows[index]]
        self.ops.paged_attention(
            shared.q, k_pages, v_pages, key_map, scale=self._scale, out=shared.attended
        )
        self.ops.linear(buffers.attended, layer.o, residual=buffers.hidden, out=buffers.hidden)

    def _mlp(self, layer: LayerWeights, buffers: Activations) -> None:
        self.ops.norm_gate_up(
            buffers.hidden, layer.post_norm, self.config.rms_norm_eps, layer.gate_up,
            normed=buffers.normed, gate_up=buffers.gate_up, out=buffers.gated,
        )  # fmt: skip
        self.ops.linear(buffers.gated, layer.down, residual=buffers.hidden, out=buffers.hidden)


@dataclass(frozen=True)
class _Shared:
    """What the layers share in one pass. `q` is a view of `heads`, and `heads` of `buffers.qkv`."""

    buffers: Activations
    heads: Tensor  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v
    q: Tensor  # [N, num_q_heads, head_dim]
    attended: Tensor  # [N, num_q_heads, head_dim]
    cos: Tensor  # [N or num_positions, head_dim]
    sin: Tensor  # [N or num_positions, head_dim]
    position: Tensor | None  # [N] row of cos and sin; None: row n
    key_maps: dict[int | None, AttentionMap]  # one for each sliding window among the layers
