"""The ops of a model's forward by the CPU library: arguments and results are those of the twins.

For float32 tensors on the CPU; a matrix may also be bfloat16, float16 or as a file has it, with the
bits of the same values in float32. Tensors whose strides or dtype the library does not support go
to the twin. A row's result has the same bits whatever other rows are in the call.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.activation.twin import gate_mul as gate_mul_twin
from rsd_kernels.attention import twin as attention_twin
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.cpu import library as native
from rsd_kernels.cpu.library import Library, pointer
from rsd_kernels.embedding.twin import embed as embed_twin
from rsd_kernels.formats.formats import PLAIN
from rsd_kernels.formats.weight import StoredMatrix, StoredWeight, Weight
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear import twin as linear_twin
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm import twin as norm_twin
from rsd_kernels.philox.twin import DrawKey
from rsd_kernels.rope.twin import rope_kv_write as rope_kv_write_twin


def available() -> bool:
    return native.load() is not None


def suits(tensor: Tensor) -> bool:
    """True if the library supports tensors like this one: float32, on the CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def embed(
    table: Tensor | StoredMatrix,  # [vocab_size, width]
    token: Tensor,  # [N] int32
    *,
    scale: float = 1.0,
    out: Tensor,  # [N, width]
) -> Tensor:
    """Row `token[n]` of the table, times `scale`. Returns `out`.

    Raises:
        ValueError: a token is not in the table.
    """
    kept = suits(out) and _whole(token, out) and token.dtype == torch.int32
    if isinstance(table, Tensor) and not (kept and held(LinearWeight(table))):
        return embed_twin(table, token, scale=scale, out=out)
    if isinstance(table, StoredMatrix) and not kept:
        return out.copy_(table.select(token.long()).expand() * scale)
    given = native.Embed(
        out.data_ptr(), native.matrix_of(table), token.data_ptr(), *out.shape, scale
    )
    library = _library()
    library.check(library.embed(given, torch.get_num_threads()), "embed")
    return out


def linear(
    x: Tensor,  # [n, K]
    weight: Weight,  # [N, K]
    *,
    residual: Tensor | None = None,  # [n, N], added to the product; may be `out` itself
    out: Tensor | None = None,  # [n, N]
) -> Tensor:
    """x Wᵀ + bias + residual. Returns `out`, or a new [n, N] where none is given."""
    if not (_rows(x, residual, out) and held(weight)):
        return linear_twin.linear(x, weight.to(x.dtype), residual=residual, out=out)
    if out is None:
        out = x.new_empty(x.shape[0], weight.num_outputs)
    _check_product(x, weight, residual, out)
    given = native.weight_of(weight)
    product = native.Product(
        out.data_ptr(), x.data_ptr(), ctypes.addressof(given), pointer(residual),
        x.shape[0], weight.num_outputs, weight.num_inputs,
        out.stride(0), x.stride(0), 0 if residual is None else residual.stride(0),
    )  # fmt: skip
    _library().product(product, torch.get_num_threads())
    return out


def norm_linear(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,
    weight: Weight,  # [N, K]
    *,
    normed: Tensor,  # [n, K] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """rms_norm(x) Wᵀ + bias. Returns `out`; the contents of `normed` are undefined afterwards."""
    if norm is None:
        return linear(x, weight, out=out)
    if not (_rows(x, normed, out) and _whole(norm) and held(weight)):
        wide = weight.to(x.dtype)
        return linear_twin.norm_linear(x, norm, eps, wide, normed=normed, out=out)
    _norm(x, norm, eps, None, normed)
    return linear(normed, weight, out=out)


def norm_gate_up(
    x: Tensor,  # [n, K]
    norm: Tensor | None,  # [K]; None: x is not normed
    eps: float,
    weight: Weight,  # [2 * N, K]: gate, then up
    *,
    gelu: bool = False,
    normed: Tensor,  # [n, K] scratch
    gate_up: Tensor,  # [n, 2 * N] scratch
    out: Tensor,  # [n, N]
) -> Tensor:
    """silu(g) * u or gelu(g) * u, of the halves of rms_norm(x) Wᵀ + bias. Returns `out`."""
    if not (_rows(x, normed) and _whole(norm, gate_up, out) and held(weight)):
        options = {"normed": normed, "gate_up": gate_up, "out": out}
        return linear_twin.norm_gate_up(x, norm, eps, weight.to(x.dtype), gelu=gelu, **options)
    norm_linear(x, norm, eps, weight, normed=normed, out=gate_up)
    if gelu:
        return gate_mul_twin(gate_up, gelu=True, out=out)
    silu_mul = native.SiluMul(out.data_ptr(), gate_up.data_ptr(), *out.shape)
    _library().silu_mul(silu_mul, torch.get_num_threads())
    return out


def rows_norm(
    x: Tensor,  # [n, K]
    row_end: Tensor,  # [M] int32: a row that is wanted, plus 1
    norm: Tensor,  # [K]
    eps: float,
    *,
    out: Tensor,  # [M, K]
) -> Tensor:
    """rms_norm of some rows. Returns `out`."""
    if not (_rows(x, out) and _whole(norm) and row_end.is_contiguous()):
        return norm_twin.rows_norm(x, row_end, norm, eps, out=out)
    _norm(x, norm, eps, row_end, out)
    return out


def rope_kv_write(
    qkv: Tensor,  # [N, num_q_heads + 2 * num_kv_heads, head_dim] q, k, v; q is changed in place
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    page: Tensor,  # [N] int32; rows with a negative page are padding
    offset: Tensor,  # [N] int32
    cos: Tensor,  # [N or num_positions, head_dim] fp32, see `rope_tables`
    sin: Tensor,  # [N or num_positions, head_dim] fp32
    *,
    position: Tensor | None = None,  # [N] int32: row n takes this row of cos and sin; None: row n
    q_norm: Tensor | None = None,  # [head_dim]
    k_norm: Tensor | None = None,  # [head_dim]
    eps: float = 0.0,
) -> None:
    """Norms each head of q and k if weights are given, rotates it, and stores k and v.

    Raises:
        ValueError: if a page, offset or position is out of range; nothing is written then.
    """
    pages = _pages(k_pages, v_pages)
    if pages is None or not (_heads(qkv) and _whole(cos, sin, page, offset, position)):
        options: dict[str, Any] = {"position": position, "q_norm": q_norm, "k_norm": k_norm}
        return rope_kv_write_twin(qkv, k_pages, v_pages, page, offset, cos, sin, eps=eps, **options)
    num_kv_heads, head_dim = k_pages.shape[2:]
    rope_write = native.RopeWrite(
        qkv.data_ptr(), pages, page.data_ptr(), offset.data_ptr(), pointer(position),
        cos.data_ptr(), sin.data_ptr(), pointer(q_norm), pointer(k_norm),
        qkv.shape[0], cos.shape[0], qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, head_dim,
        qkv.stride(0), eps,
    )  # fmt: skip
    library = _library()
    library.check(library.rope_write(rope_write, torch.get_num_threads()), "rope_kv_write")
    return None


def paged_attention(
    q: Tensor,  # [N, num_q_heads, head_dim]
    k_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    v_pages: Tensor,  # [num_pages, tokens_per_page, num_kv_heads, head_dim], strided
    key_map: AttentionMap,
    *,
    scale: float,
    out: Tensor,  # [N, num_q_heads, head_dim]
    ahead: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ * scale) v of every row over the keys of its sequence up to itself.

    Rows of `out` that belong to no sequence are left unchanged. Returns `out`.

    ahead: for a GPU alone.

    Raises:
        ValueError: if a length, slot or page is out of range; nothing is written then.
    """
    del ahead
    batch, table = key_map.batch, key_map.page_table
    pages = _pages(k_pages, v_pages)
    small = q.shape[2] <= native.MAX_HEAD_DIM and table.stride(1) == 1
    if pages is None or not (small and _heads(q) and _heads(out)):
        whole_map = attention_twin.attention_map(
            batch, table, key_map.tokens_per_page, key_map.sliding_window, q.dtype
        )
        return attention_twin.paged_attention(q, k_pages, v_pages, whole_map, scale=scale, out=out)
    attention = native.Attention(
        out.data_ptr(), q.data_ptr(), pages, table.data_ptr(), batch.seq_slot.data_ptr(),
        batch.seq_start.data_ptr(), batch.seq_kv_len.data_ptr(),
        q.shape[0], batch.num_seqs, *table.shape, table.stride(0),
        q.shape[1], k_pages.shape[2], q.shape[2], out.stride(0), q.stride(0),
        key_map.sliding_window or 0, scale,
    )  # fmt: skip
    library = _library()
    library.check(library.attention(attention, torch.get_num_threads()), "paged_attention")
    return out


def draw(
    scores: Tensor,  # [V] float32, contiguous; minus infinity where an id is out
    key: DrawKey,
) -> int:
    """The id with the largest score + noise, the first of equals."""
    token, best = ctypes.c_int64(), ctypes.c_float()
    given = native.Draw(
        ctypes.addressof(token), ctypes.addressof(best), scores.data_ptr(), len(scores),
        key.seed % 2**64, key.sample, key.num_steps, key.position, key.purpose,
    )  # fmt: skip
    _library().draw(given)
    return token.value


def _norm(x: Tensor, weight: Tensor, eps: float, row_end: Tensor | None, out: Tensor) -> None:
    norm = native.Norm(
        out.data_ptr(), x.data_ptr(), weight.data_ptr(), pointer(row_end),
        *out.shape, out.stride(0), x.stride(0), eps,
    )  # fmt: skip
    _library().norm(norm, torch.get_num_threads())


def _check_product(x: Tensor, weight: Weight, residual: Tensor | None, out: Tensor) -> None:
    wanted = (x.shape[0], weight.num_outputs)
    if x.shape[1] != weight.num_inputs:
        raise ValueError(f"x has shape {list(x.shape)}; its rows must be {weight.num_inputs} wide")
    for name, tensor in (("residual", residual), ("out", out)):
        if tensor is not None and tensor.shape != wanted:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(wanted)}")


@cache
def _library() -> Library:
    library = native.load()
    if library is None:
        raise RuntimeError(f"the CPU library is {native.status()}")
    return library


def _rows(*tensors: Tensor | None) -> bool:
    """True if all are float32 on the CPU, with contiguous rows."""
    return all(t is None or (suits(t) and (t.stride(1) == 1 or t.shape[1] == 1)) for t in tensors)


def _whole(*tensors: Tensor | None) -> bool:
    return all(t is None or t.is_contiguous() for t in tensors)


def held(weight: Weight) -> bool:
    """True if the library can read the weight where it lies."""
    if isinstance(weight, GroupedWeight):
        return False
    if isinstance(weight, StoredWeight):
        return _whole(weight.bias, *(part.rows for part in weight.parts))
    return weight.dtype in PLAIN and _whole(weight.matrix, weight.bias)


def _heads(tensor: Tensor) -> bool:
    """True if every row of [n, heads, head_dim] is contiguous."""
    return suits(tensor) and tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]


def _pages(k_pages: Tensor, v_pages: Tensor) -> native.Pages | None:
    if not suits(k_pages) or k_pages.stride() != v_pages.stride() or k_pages.stride(3) != 1:
        return None
    return native.pages_of(k_pages, v_pages)
