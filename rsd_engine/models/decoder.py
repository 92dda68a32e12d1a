"""One decoder for Llama, Mistral, Qwen2 and Qwen3: packed new rows through every layer.

A forward reads the rows of a pass, writes their K and V into pages and attends over the page table.
It moves no cursor: what it wrote counts only once the loop says so.
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
    """The layers of one model between token ids and the final norm.

    Args:
        config: sizes and switches.
        weights: filled weights on one device; see `matrix_dtype` in `load_language_model`.
        max_rows: most rows a pass may bring.
        max_positions: length of the rope tables; positions from here on cannot be read.
        arena: byte buffer to cut the activations from, shared with other models.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        max_rows: int,
        max_positions: int | None = None,
        arena: Tensor | None = None,  # [bytes] uint8
    ) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.dtype
        self.device = weights.embedding.device
        self.activations = Activations.allocate(config, max_rows, self.dtype, self.device, arena)
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
        """True if all layers run in one call."""
        return self._whole is not None

    def forward(
        self,
        batch: RowBatch,
        kv: PagedKV,
        page_table: Tensor,  # [B, P] int32: page of tokens [p * tokens_per_page, ..) of a slot
    ) -> Tensor:
        """Reads the N rows of `batch`; their K and V stand in the pages afterwards.

        Returns:
            [N, hidden] before the final norm, in this model's buffer: valid until its next pass.

        Raises:
            ValueError: if the batch has more rows than `max_rows`.
        """
        if batch.num_rows > self.activations.max_rows:
            raise ValueError(
                f"a pass of {batch.num_rows} rows, at most {self.activations.max_rows} fit"
            )
        if self._whole is not None:
            self._whole.forward(batch, kv, page_table)
            return self.activations.hidden[: batch.num_rows]
        now = self._begin(batch, kv, page_table)
        for index, layer in enumerate(self.weights.layers):
            self._attention(index, layer, now, batch, kv)
            self._mlp(layer, now.buffers)
        return now.buffers.hidden

    def _begin(self, batch: RowBatch, kv: PagedKV, page_table: Tensor) -> _Pass:
        """What all layers share: embedded rows, angles, views, which keys to attend to."""
        config = self.config
        buffers = self.activations.narrow(batch.num_rows)
        self.ops.embed(self.weights.embedding, batch.token, out=buffers.hidden)
        cos, sin, position = self.ops.rope_angles(self._cos, self._sin, batch.position)
        heads = buffers.qkv.view(batch.num_rows, -1, config.head_dim)
        return _Pass(
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
        self, index: int, layer: LayerWeights, now: _Pass, batch: RowBatch, kv: PagedKV
    ) -> None:
        ops, eps, buffers = self.ops, self.config.rms_norm_eps, now.buffers
        k_pages, v_pages = kv.k[index], kv.v[index]
        ops.qkv_projection(
            buffers.hidden,
            layer.input_norm,
            eps,
            layer.qkv,
            layer.qkv_bias,
            now.heads,
            k_pages,
            v_pages,
            batch.page,
            batch.offset,
            now.cos,
            now.sin,
            position=now.position,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            normed=buffers.normed,
        )
        key_map = now.key_maps[self.config.sliding_windows[index]]
        ops.paged_attention(now.q, k_pages, v_pages, key_map, scale=self._scale, out=now.attended)
        ops.linear(
            buffers.attended, layer.o, layer.o_bias, residual=buffers.hidden, out=buffers.hidden
        )

    def _mlp(self, layer: LayerWeights, buffers: Activations) -> None:
        self.ops.norm_gate_up(
            buffers.hidden,
            layer.post_norm,
            self.config.rms_norm_eps,
            layer.gate_up,
            layer.gate_up_bias,
            normed=buffers.normed,
            gate_up=buffers.gate_up,
            out=buffers.gated,
        )
        self.ops.linear(
            buffers.gated,
            layer.down,
            layer.down_bias,
            residual=buffers.hidden,
            out=buffers.hidden,
        )


@dataclass(frozen=True)
class _Pass:
    """What all layers of one pass share. `q` is a view of `heads`, which views `buffers.qkv`."""

    buffers: Activations
    heads: Tensor  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v
    q: Tensor  # [N, num_q_heads, head_dim]
    attended: Tensor  # [N, num_q_heads, head_dim]
    cos: Tensor  # [N or num_positions, head_dim]
    sin: Tensor  # [N or num_positions, head_dim]
    position: Tensor | None  # [N] rows of cos and sin; None: row n
    key_maps: dict[int | None, AttentionMap]  # one for each sliding window among the layers
