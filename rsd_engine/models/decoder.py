"""One decoder for Llama, Mistral, Qwen2 and Qwen3: packed new rows through every layer.

A forward reads the rows of a pass, writes their K and V into pages and attends over the page table.
It moves no cursor: what it wrote counts only once the loop says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_engine.memory.page_pool import PagedKV
from rsd_engine.models.activations import Activations
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weights import DecoderWeights, LayerWeights
from rsd_kernels.reference.activation import silu_mul
from rsd_kernels.reference.attention import AttentionMap, attention_map, paged_attention
from rsd_kernels.reference.kv_write import kv_write
from rsd_kernels.reference.linear import linear
from rsd_kernels.reference.norm import rms_norm
from rsd_kernels.reference.rope import rope, rope_rows, rope_tables
from rsd_kernels.row_batch import RowBatch


class Decoder:
    """The layers of one model between token ids and the final norm.

    Args:
        config: sizes and switches.
        weights: filled weights, all of one dtype and on one device.
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
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self.activations = Activations.allocate(config, max_rows, self.dtype, self.device, arena)
        self._scale = config.head_dim**-0.5
        inv_freq = config.rope.inv_freq(config.head_dim)
        positions = max_positions or config.max_position_embeddings
        cos, sin = rope_tables(inv_freq, positions, config.rope.attention_factor)
        self._cos, self._sin = cos.to(self.device), sin.to(self.device)

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
        buffers = self.activations.narrow(batch.num_rows)
        torch.index_select(self.weights.embedding, 0, batch.token, out=buffers.hidden)
        cos, sin = rope_rows(self._cos, self._sin, batch.position)
        key_maps = self._key_maps(batch, page_table, kv.tokens_per_page)
        for index, layer in enumerate(self.weights.layers):
            rms_norm(buffers.hidden, layer.input_norm, self.config.rms_norm_eps, out=buffers.normed)
            q, k, v = self._project(layer, buffers, cos, sin)
            kv_write(k, v, kv.k[index], kv.v[index], batch.page, batch.offset)
            paged_attention(
                q,
                kv.k[index],
                kv.v[index],
                key_maps[self.config.sliding_windows[index]],
                scale=self._scale,
                out=buffers.attended.view(q.shape),
            )
            linear(
                buffers.attended,
                layer.o,
                layer.o_bias,
                residual=buffers.hidden,
                out=buffers.hidden,
            )
            self._mlp(layer, buffers)
        return buffers.hidden

    def _project(
        self, layer: LayerWeights, buffers: Activations, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of every row, q and k rotated, as views [N, heads, head_dim] of one buffer."""
        config = self.config
        linear(buffers.normed, layer.qkv, layer.qkv_bias, out=buffers.qkv)
        heads = buffers.qkv.view(buffers.qkv.shape[0], -1, config.head_dim)
        q, k, v = heads.split((config.num_q_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            rms_norm(q, layer.q_norm, config.rms_norm_eps, out=q)
            rms_norm(k, layer.k_norm, config.rms_norm_eps, out=k)
        rope(heads[:, : config.num_q_heads + config.num_kv_heads], cos, sin)
        return q, k, v

    def _mlp(self, layer: LayerWeights, buffers: Activations) -> None:
        rms_norm(buffers.hidden, layer.post_norm, self.config.rms_norm_eps, out=buffers.normed)
        linear(buffers.normed, layer.gate_up, layer.gate_up_bias, out=buffers.gate_up)
        silu_mul(buffers.gate_up, out=buffers.gated)
        linear(
            buffers.gated,
            layer.down,
            layer.down_bias,
            residual=buffers.hidden,
            out=buffers.hidden,
        )

    def _key_maps(
        self, batch: RowBatch, page_table: Tensor, tokens_per_page: int
    ) -> dict[int | None, AttentionMap]:
        """One map for each sliding window among the layers."""
        return {
            window: attention_map(batch, page_table, tokens_per_page, window, self.dtype)
            for window in set(self.config.sliding_windows)
        }
