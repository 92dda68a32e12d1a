"""All layers of a decoder in one call of the CPU library.

For a small model the Python and torch calls between ops would take longer than the ops themselves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rsd_kernels.cpu import library as native
from rsd_kernels.cpu.ops import held, suits
from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.state.rows import RowBatch

# The weights of a layer, by their names in `RsdLayer` of csrc/cpu/rsd_cpu.h.
_LINEARS = ("qkv", "o", "gate_up", "down")  # Weight
_NORMS = ("input_norm", "q_norm", "k_norm", "post_norm")  # Tensor; those of heads may be None
_OUT_NORMS = ("attention_out_norm", "mlp_out_norm")  # Tensor or None; the library has none


class Buffers(Protocol):
    """The buffers of a pass, each [max_rows, its width], contiguous."""

    @property
    def hidden(self) -> Tensor: ...
    @property
    def normed(self) -> Tensor: ...
    @property
    def qkv(self) -> Tensor: ...
    @property
    def attended(self) -> Tensor: ...
    @property
    def gate_up(self) -> Tensor: ...
    @property
    def gated(self) -> Tensor: ...


class Pool(Protocol):
    """K and V of every layer, each [num_pages, tokens_per_page, num_kv_heads, head_dim]."""

    @property
    def k(self) -> tuple[Tensor, ...]: ...
    @property
    def v(self) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class DecoderParts:
    """A decoder from token ids up to the final norm."""

    embedding: Tensor | StoredMatrix  # [vocab_size, hidden]
    layers: Sequence[Any]  # each with the weights of _LINEARS, _NORMS and _OUT_NORMS
    sliding_windows: Sequence[int | None]  # a layer: tokens a row sees, itself included
    # A layer: cosines and sines [num_positions, head_dim] fp32, see `rope_tables`.
    rope_tables: Sequence[tuple[Tensor, Tensor]]
    buffers: Buffers
    num_q_heads: int
    num_kv_heads: int
    eps: float  # of every norm
    scale: float  # of the attention scores
    embedding_scale: float = 1.0
    gelu: bool = False  # the gate's activation is GELU, not SiLU


class CpuDecoder:
    """Runs the passes of one decoder; `cpu_decoder` makes it."""

    def __init__(self, parts: DecoderParts, library: native.Library) -> None:
        self._parts, self._library = parts, library
        self._layers = (native.Layer * len(parts.layers))()
        for into, layer, window, tables in zip(
            self._layers, parts.layers, parts.sliding_windows, parts.rope_tables, strict=True
        ):
            into.cos, into.sin = (table.data_ptr() for table in tables)
            for name in _NORMS:
                setattr(into, name, native.pointer(getattr(layer, name)))
            for name in _LINEARS:
                setattr(into, name, native.weight_of(getattr(layer, name)))
            into.sliding_window = window or 0
        self._decoder = self._make_decoder()
        self._pool: Pool | None = None

    def _make_decoder(self) -> native.DecoderStruct:
        parts, buffers = self._parts, self._parts.buffers
        num_positions, head_dim = parts.rope_tables[0][0].shape
        tensors = (
            buffers.hidden, buffers.normed, buffers.qkv, buffers.attended, buffers.gate_up,
            buffers.gated,
        )  # fmt: skip
        return native.DecoderStruct(
            ctypes.addressof(self._layers), native.matrix_of(parts.embedding),
            *(tensor.data_ptr() for tensor in tensors),
            len(parts.layers), *parts.embedding.shape, buffers.gated.shape[1],
            num_positions, buffers.hidden.shape[0],
            parts.num_q_heads, parts.num_kv_heads, head_dim,
            native.Pages(), parts.eps, parts.scale, parts.embedding_scale,
        )  # fmt: skip

    def forward(
        self,
        batch: RowBatch,
        pool: Pool,
        page_table: Tensor,  # [B, P] int32
    ) -> None:
        """Leaves the hidden states of `batch` in `buffers.hidden`, before the final norm.

        Rows after those of the last sequence are padding and are ignored.

        Raises:
            ValueError: if a token, position, page or length is out of range; nothing is written.
        """
        if pool is not self._pool:
            self._use(pool)
        rows = native.Pass(
            batch.token.data_ptr(), batch.position.data_ptr(), batch.page.data_ptr(),
            batch.offset.data_ptr(), batch.seq_slot.data_ptr(), batch.seq_start.data_ptr(),
            batch.seq_kv_len.data_ptr(), page_table.data_ptr(),
            batch.num_rows, batch.num_seqs, *page_table.shape, page_table.stride(0),
        )  # fmt: skip
        code = self._library.decoder(self._decoder, rows, torch.get_num_threads())
        if code != 0:
            self._library.check(code, f"a pass of {batch.num_rows} rows")

    def _use(self, pool: Pool) -> None:
        """Stores the addresses of every layer's K and V."""
        strides = {tensor.stride() for tensor in (*pool.k, *pool.v)}
        if len(strides) != 1:
            raise ValueError(f"K and V have strides {sorted(strides)}; all must be the same")
        for into, k, v in zip(self._layers, pool.k, pool.v, strict=True):
            into.k_pages, into.v_pages = k.data_ptr(), v.data_ptr()
        self._decoder.pages = native.pages_of(pool.k[0], pool.v[0])
        self._pool = pool


def cpu_decoder(parts: DecoderParts) -> CpuDecoder | None:
    """The fast path of a decoder, or None where its ops must be called one by one."""
    library = native.load()
    if library is None or not parts.layers or not _is_plain(parts):
        return None
    linears = [getattr(layer, name) for layer in parts.layers for name in _LINEARS]
    norms = [getattr(layer, name) for layer in parts.layers for name in _NORMS]
    optional = [*norms, *(weight.bias for weight in linears)]
    vectors = [tensor for tensor in optional if tensor is not None]
    vectors += [table for tables in parts.rope_tables for table in tables]
    fits = (
        parts.rope_tables[0][0].shape[1] <= native.MAX_HEAD_DIM
        and all(suits(tensor) and tensor.is_contiguous() for tensor in vectors)
        and all(map(held, linears))
        and (isinstance(parts.embedding, StoredMatrix) or held(LinearWeight(parts.embedding)))
    )
    return CpuDecoder(parts, library) if fits else None


def _is_plain(parts: DecoderParts) -> bool:
    """True for what the library computes: norms before a block and of single heads, a SiLU gate."""
    head_dim = parts.rope_tables[0][0].shape[1]
    return not parts.gelu and all(
        layer.input_norm is not None
        and all(getattr(layer, name) is None for name in _OUT_NORMS)
        and (layer.q_norm is None or layer.q_norm.numel() == head_dim)
        for layer in parts.layers
    )
