"""Checks of the arguments of paged attention: always their shapes, in debug runs their values."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.launch import (
    FLOAT_DTYPES,
    check_devices,
    check_dtype,
    check_last_contiguous,
    check_shape,
)
from rsd_kernels.state.slots import pages_for

MAX_HEAD_DIM = 256


def check_arguments(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, key_map: AttentionMap, *, out: Tensor
) -> None:
    """Raises ValueError unless shapes, dtypes, strides and devices suit `paged_attention`."""
    _check_shapes(q, k_pages, v_pages, key_map, out)
    check_dtype("q", q, *FLOAT_DTYPES)
    for name, tensor in (("k_pages", k_pages), ("v_pages", v_pages), ("out", out)):
        check_dtype(name, tensor, q.dtype)
    for name, tensor in (("q", q), ("k_pages", k_pages), ("v_pages", v_pages), ("out", out)):
        check_last_contiguous(name, tensor)
    batch = key_map.batch
    integers = {
        "batch.seq_slot": batch.seq_slot,
        "batch.seq_start": batch.seq_start,
        "batch.seq_kv_len": batch.seq_kv_len,
        "page_table": key_map.page_table,
    }
    for name, tensor in integers.items():
        check_dtype(name, tensor, torch.int32)
        check_last_contiguous(name, tensor)
    scratch = {} if key_map.scratch is None else vars(key_map.scratch)
    for name, tensor in scratch.items():
        dtype = torch.int32 if name == "arrived" else torch.float32
        check_dtype(f"key_map.scratch.{name}", tensor, dtype)
    check_devices(q=q, k_pages=k_pages, v_pages=v_pages, out=out, **scratch, **integers)


def _check_shapes(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, key_map: AttentionMap, out: Tensor
) -> None:
    for name, tensor, dims in (
        ("q", q, 3),
        ("k_pages", k_pages, 4),
        ("page_table", key_map.page_table, 2),
    ):
        if tensor.dim() != dims:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; it must have {dims} dimensions"
            )
    num_kv_heads, head_dim = k_pages.shape[2:]
    check_shape("q", q, (q.shape[0], q.shape[1], head_dim))
    check_shape("out", out, tuple(q.shape))
    check_shape("v_pages", v_pages, tuple(k_pages.shape))
    if k_pages.shape[1] != key_map.tokens_per_page:
        raise ValueError(
            f"k_pages has {k_pages.shape[1]} tokens a page; it must have "
            f"{key_map.tokens_per_page}, as key_map says"
        )
    if num_kv_heads < 1 or q.shape[1] % num_kv_heads:
        raise ValueError(f"q has {q.shape[1]} heads; it must be a multiple of {num_kv_heads}")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"q has heads of {head_dim}; allowed: 1 to {MAX_HEAD_DIM}")


def check_values(k_pages: Tensor, key_map: AttentionMap) -> None:
    """Checks lengths and page tables on the host, for debugging: it waits for the device."""
    batch, table = key_map.batch, key_map.page_table
    starts, lengths = batch.seq_start.tolist(), batch.seq_kv_len.tolist()
    for seq, (start, stop, slot, kv_len) in enumerate(
        zip(starts, starts[1:], batch.seq_slot.tolist(), lengths, strict=False)
    ):
        if start == stop:
            continue
        if not 0 <= slot < table.shape[0]:
            raise ValueError(f"batch.seq_slot[{seq}] is {slot}; allowed: 0 to {table.shape[0] - 1}")
        most = table.shape[1] * key_map.tokens_per_page
        if not stop - start <= kv_len <= most:
            raise ValueError(
                f"batch.seq_kv_len[{seq}] is {kv_len}; allowed: {stop - start} to {most}"
            )
        pages = table[slot, : pages_for(kv_len, key_map.tokens_per_page)]
        if bool(((pages < 0) | (pages >= k_pages.shape[0])).any()):
            raise ValueError(
                f"page_table[{slot}] is {pages.tolist()}; allowed: 0 to {k_pages.shape[0] - 1}"
            )
