"""Paged decode attention beside PyTorch's SDPA on dense K and V, and the small ops around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.kernels.gate import Errors, require_close
from bench.kernels.loop_op_state import moved
from bench.kernels.projection_cases import Case
from bench.kernels.setting import Setting
from bench.lib.timing import Calls
from rsd_engine.memory.page_pool import KVShape, PagedKV, PagePool
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.embedding import twin as embedding_twin
from rsd_kernels.norm import twin as norm_twin
from rsd_kernels.rope.tables import rope_rows, rope_tables
from rsd_kernels.rope.twin import rope, rope_kv_write
from rsd_kernels.state.rows import RowBatch

TOKENS_PER_PAGE = 16
_EPS = 1e-6


@dataclass(frozen=True)
class DecodeInputs:
    """Sequences that decode one token each, with the K and V of several layers in pages."""

    batch: RowBatch
    table: Tensor  # [S, P] int32
    kv: PagedKV
    context: int

    @property
    def copies(self) -> int:
        return len(self.kv.k)


def decode_inputs(
    setting: Setting,
    shape: DecoderShape,
    num_rows: int,
    copies: int,
    per_page: int = TOKENS_PER_PAGE,
) -> DecodeInputs:
    """`num_rows` sequences of `setting.context` tokens with `copies` layers and shuffled pages."""
    context, device = setting.context, setting.device
    kv_shape = KVShape(copies, shape.num_kv_heads, shape.head_dim, setting.dtype)
    columns = -(-context // per_page)
    page_bytes = -(-per_page * kv_shape.bytes_per_token // 256) * 256
    pool = PagePool(num_rows * columns, page_bytes, device)
    pool.buffer.view(setting.dtype).normal_()
    order = torch.randperm(num_rows * columns, generator=torch.Generator().manual_seed(7))
    table = order.view(num_rows, columns).int()
    kv = pool.view(kv_shape)
    batch = last_rows(table, context, kv.tokens_per_page)
    return DecodeInputs(moved(batch, device), table.to(device), kv, context)


def last_rows(
    table: Tensor,  # [S, P] int32, on the CPU
    context: int,
    per_page: int,
    rows_each: int = 1,
    padded_to: int | None = None,
) -> RowBatch:
    """A pass that reads the last tokens of every sequence, with a place behind each of them."""
    num_seqs = table.shape[0]
    count = num_seqs * rows_each
    slot = torch.arange(num_seqs).repeat_interleave(rows_each)
    position = torch.arange(context - rows_each, context).repeat(num_seqs)
    batch = RowBatch.allocate(padded_to or count, num_seqs, torch.device("cpu"), count)
    for name, values in {
        "slot": slot, "position": position, "token": torch.arange(count),
        "page": table[slot, position // per_page], "offset": position % per_page,
        "place_slot": slot, "place_position": position + 1,
        "place_row_end": torch.arange(1, count + 1),
    }.items():  # fmt: skip
        getattr(batch, name)[:count] = values
    batch.seq_slot.copy_(torch.arange(num_seqs))
    batch.seq_start.copy_(torch.arange(num_seqs + 1) * rows_each)
    batch.seq_place.copy_(batch.seq_start)
    batch.seq_kv_len.fill_(context)
    batch.seq_complete.fill_(1)
    return batch


def attention_case(setting: Setting, shape: DecoderShape, num_rows: int) -> Case:
    """One layer's decode attention."""
    token_bytes = 2 * shape.num_kv_heads * shape.head_dim * setting.dtype.itemsize
    num_bytes = num_rows * setting.context * token_bytes
    inputs = decode_inputs(setting, shape, num_rows, setting.copies(num_bytes))
    q = setting.normal(num_rows, shape.num_q_heads, shape.head_dim)
    ours, plain = torch.empty_like(q), torch.empty_like(q)
    heads = (shape.num_q_heads, shape.num_kv_heads, shape.head_dim)
    scratch = setting.ops.attention_scratch(num_rows, *heads, q.dtype, q.device)
    per_page = inputs.kv.tokens_per_page
    key_map = setting.ops.attention_map(
        inputs.batch, inputs.table, per_page, None, q.dtype, scratch
    )
    scale = shape.head_dim**-0.5
    dense = _dense(inputs)

    def run_ours(index: int) -> None:
        k, v = inputs.kv.k[index], inputs.kv.v[index]
        setting.ops.paged_attention(q, k, v, key_map, scale=scale, out=ours)

    def run_sdpa(index: int) -> Tensor:
        k, v = dense[0][index], dense[1][index]
        found = scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=True)
        return plain.copy_(found[:, :, 0])

    def gate() -> dict[str, Errors]:
        ours.fill_(torch.nan)
        run_ours(0)
        run_sdpa(0)
        exact = _exact_attention(inputs, q, scale)
        what = f"paged_attention, {num_rows} sequences"
        return {"ours": require_close(ours, plain, exact, what, num_terms=setting.context)}

    contenders = {"ours": Calls(run_ours), "torch SDPA, dense K and V": Calls(run_sdpa)}
    return Case("paged_attention", num_rows, num_bytes, inputs.copies, contenders, gate)


def _dense(inputs: DecodeInputs) -> tuple[list[Tensor], list[Tensor]]:
    """K and V of every layer as [S, num_kv_heads, context, head_dim], contiguous."""
    table, context = inputs.table.long(), inputs.context
    k, v = (
        [layer[table].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for layer in layers]
        for layers in (inputs.kv.k, inputs.kv.v)
    )
    return k, v


def _exact_attention(inputs: DecodeInputs, q: Tensor, scale: float) -> Tensor:
    wide = q.double()
    key_map = attention_map(
        inputs.batch, inputs.table, inputs.kv.tokens_per_page, None, torch.float64
    )
    k, v = inputs.kv.k[0].double(), inputs.kv.v[0].double()
    return paged_attention(wide, k, v, key_map, scale=scale, out=torch.empty_like(wide))


def small_cases(setting: Setting, shape: DecoderShape, num_rows: int) -> Iterator[Case]:
    """Ops that move a few rows, and cost little more than their launch."""
    yield _rope_case(setting, shape, num_rows)
    yield _embed_case(setting, shape, num_rows)
    yield _last_rows_case(setting, shape, num_rows)


def _rope_case(setting: Setting, shape: DecoderShape, num_rows: int) -> Case:
    inputs = decode_inputs(replace(setting, context=TOKENS_PER_PAGE), shape, num_rows, copies=16)
    num_heads = shape.num_q_heads + 2 * shape.num_kv_heads
    qkv = setting.normal(num_rows, num_heads, shape.head_dim)
    inv_freq = 1e6 ** (-torch.arange(0, shape.head_dim, 2, device=qkv.device) / shape.head_dim)
    cos, sin = rope_tables(inv_freq, TOKENS_PER_PAGE, 1.0)
    batch = inputs.batch

    def call(op: Callable[..., object], index: int, values: Tensor) -> None:
        k, v = inputs.kv.k[index], inputs.kv.v[index]
        place = (batch.page, batch.offset)
        op(values, k, v, *place, cos, sin, position=batch.position)

    def gate() -> dict[str, Errors]:
        where = (batch.page.long(), batch.offset.long())
        stored = {}
        for name, op, values in (
            ("ours", setting.ops.rope_kv_write, qkv.clone()),
            ("plain", rope_kv_write, qkv.clone()),
        ):
            call(op, 0, values)
            q = values[:, : shape.num_q_heads]
            stored[name] = torch.cat([q, inputs.kv.k[0][where], inputs.kv.v[0][where]], dim=1)
        wide, pages = qkv.double(), inputs.kv.k[0].double()
        rope_kv_write(
            wide, pages, pages.clone(), batch.page, batch.offset, cos, sin, position=batch.position
        )
        exact = torch.cat([wide[:, : shape.num_q_heads], pages[where]], dim=1)
        exact = torch.cat([exact, wide[:, -shape.num_kv_heads :]], dim=1)
        what = f"rope_kv_write, {num_rows} rows"
        return {"ours": require_close(stored["ours"], stored["plain"], exact, what)}

    page, offset = batch.page.long(), batch.offset.long()

    def torch_ops(index: int) -> None:
        """What the twin does, without its check for padding, which a graph cannot capture."""
        rope(qkv[:, : -shape.num_kv_heads], *rope_rows(cos, sin, batch.position))
        inputs.kv.k[index][page, offset] = qkv[:, shape.num_q_heads : -shape.num_kv_heads]
        inputs.kv.v[index][page, offset] = qkv[:, -shape.num_kv_heads :]

    contenders = {
        "ours": Calls(lambda i: call(setting.ops.rope_kv_write, i, qkv)),
        "torch ops": Calls(torch_ops),
    }
    return Case("rope_kv_write", num_rows, 2 * qkv.nbytes, inputs.copies, contenders, gate)


def _embed_case(setting: Setting, shape: DecoderShape, num_rows: int) -> Case:
    table = setting.normal(shape.vocab, shape.hidden)
    token = torch.arange(num_rows, dtype=torch.int32, device=table.device) * 7 % shape.vocab
    ours = table.new_empty(num_rows, shape.hidden)
    plain = torch.empty_like(ours)

    def gate() -> dict[str, Errors]:
        ours.fill_(torch.nan)
        setting.ops.embed(table, token, out=ours)
        embedding_twin.embed(table, token, out=plain)
        exact = table[token.long()].double()
        return {"ours": require_close(ours, plain, exact, f"embed, {num_rows} rows")}

    contenders = {
        "ours": Calls(lambda _: setting.ops.embed(table, token, out=ours)),
        "torch ops": Calls(lambda _: embedding_twin.embed(table, token, out=plain)),
    }
    return Case("embed", num_rows, 2 * ours.nbytes, 16, contenders, gate)


def _last_rows_case(setting: Setting, shape: DecoderShape, num_rows: int) -> Case:
    x = setting.normal(num_rows, shape.hidden)
    norm = setting.normal(shape.hidden)
    end = torch.arange(1, num_rows + 1, dtype=torch.int32, device=x.device)
    ours, plain = torch.empty_like(x), torch.empty_like(x)

    def gate() -> dict[str, Errors]:
        ours.fill_(torch.nan)
        setting.ops.rows_norm(x, end, norm, _EPS, out=ours)
        norm_twin.rows_norm(x, end, norm, _EPS, out=plain)
        exact = torch.empty_like(x, dtype=torch.float64)
        norm_twin.rows_norm(x.double(), end, norm.double(), _EPS, out=exact)
        what = f"rows_norm, {num_rows} rows"
        return {"ours": require_close(ours, plain, exact, what, num_terms=shape.hidden)}

    contenders = {
        "ours": Calls(lambda _: setting.ops.rows_norm(x, end, norm, _EPS, out=ours)),
        "torch ops": Calls(lambda _: norm_twin.rows_norm(x, end, norm, _EPS, out=plain)),
    }
    return Case("rows_norm", num_rows, 2 * x.nbytes, 16, contenders, gate)
