"""Attention over paged K and V in Triton: decode rows and chunks of any sequences in one launch.

out[n, h] = sum_j softmax_j(q[n, h] . k[j, h / GROUP] * scale) v[j, h / GROUP]

over the keys j of row n's sequence up to itself. The keys are split over programs (Flash-Decoding;
Dao et al., 2023), so that one sequence with two K/V heads still fills the device; of the programs
that share rows the last one to arrive combines what all of them found. The grid depends on shapes
alone: lengths and page tables are read on the device. A captured launch therefore serves any
lengths. Programs without work, and those that are done, fetch weights for the products to come.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.overlap import (
    allow_next_kernel,
    prefetch_ahead,
    prefetch_rows,
    wait_for_previous_kernel,
)

_PREFETCHED = tl.constexpr(128)  # keys of a split that are asked for before the wait
_PARTS_LOADED = tl.constexpr(8192)  # numbers loaded at once: 64 registers of 128 threads


@triton.jit
def _combine(
    out: tl.tensor,  # [rows, num_q_heads, HEAD_DIM]
    part: tl.tensor,  # [rows, num_q_heads, num_splits, HEAD_DIM]
    part_max: tl.tensor,  # [rows, num_q_heads, num_splits]
    part_sum: tl.tensor,  # [rows, num_q_heads, num_splits]
    i_row: tl.tensor,
    num_rows: tl.tensor,
    i_head: tl.tensor,  # a K/V head
    num_used: tl.tensor,  # splits that found something, at least 1
    stride_out_row: tl.tensor,
    stride_out_head: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """out[n, h] = sum_s 2^max[s] part[s] / sum_s 2^max[s] sum[s] for the query heads of a K/V head.

    The order of the sums depends on the number of splits alone, not on who is last. The parts lie
    in the L2 cache, and those of a block of splits are loaded at once.
    """
    BLOCK_G: tl.constexpr = triton.next_power_of_2(GROUP)
    BLOCK_P: tl.constexpr = min(max(_PARTS_LOADED // (BLOCK_G * BLOCK_D), 1), MAX_SPLITS)
    o_g, o_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    m_g, m_d = o_g < GROUP, o_d < HEAD_DIM
    o_head = i_head * GROUP + o_g
    num_q_heads, num_splits = tl.num_programs(1) * GROUP, tl.num_programs(2)
    for i in range(0, num_rows):
        row = i_row.to(tl.int64) + i
        i_part = row * num_q_heads * num_splits
        b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_G], tl.float32)
        b_acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
        for i_first in range(0, num_used, BLOCK_P):
            o_split = i_first + tl.arange(0, BLOCK_P)
            m_part = (o_split < num_used)[:, None] & m_g[None, :]
            o_part = o_head[None, :] * num_splits + o_split[:, None]
            p_max, p_sum = part_max + i_part + o_part, part_sum + i_part + o_part
            b_maxes = tl.load(p_max, mask=m_part, other=float("-inf"), cache_modifier=".cg")
            b_sums = tl.load(p_sum, mask=m_part, other=0.0, cache_modifier=".cg")
            p_part = part + i_part * HEAD_DIM
            p_part += o_part[:, :, None] * HEAD_DIM + o_d[None, None, :]
            m_all = m_part[:, :, None] & m_d[None, None, :]
            b_parts = tl.load(p_part, mask=m_all, other=0.0, cache_modifier=".cg")
            b_new_max = tl.maximum(b_max, tl.max(b_maxes, 0))
            b_shift = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # no -inf - -inf
            b_weights = tl.exp2(b_maxes - b_shift[None, :])
            b_decay = tl.exp2(b_max - b_shift)
            b_sum = b_sum * b_decay + tl.sum(b_weights * b_sums, 0)
            b_acc = b_acc * b_decay[:, None] + tl.sum(b_weights[:, :, None] * b_parts, 0)
            b_max = b_new_max
        p_out = out + row * stride_out_row + o_head * stride_out_head
        b_out = (b_acc / b_sum[:, None]).to(out.dtype.element_ty)
        tl.store(p_out[:, None] + o_d[None, :], b_out, mask=m_g[:, None] & m_d[None, :])


@triton.jit
def _leave(
    part: tl.tensor,
    part_max: tl.tensor,
    part_sum: tl.tensor,
    p_arrived: tl.tensor,  # the counter of this tile and K/V head
    b_acc: tl.tensor,  # [M, D] what the split found
    b_max: tl.tensor,  # [M]
    b_sum: tl.tensor,  # [M]
    o_part: tl.tensor,  # [M] where that goes
    m_m: tl.tensor,  # [M]
    m_d: tl.tensor,  # [D]
    num_used: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Leaves what a split found; returns whether it is the last of its rows to arrive."""
    o_d = tl.arange(0, BLOCK_D)
    tl.store(part_max + o_part, b_max, mask=m_m)
    tl.store(part_sum + o_part, b_sum, mask=m_m)
    p_part = part + o_part[:, None] * HEAD_DIM + o_d[None, :]
    tl.store(p_part, b_acc, mask=m_m[:, None] & m_d[None, :])
    tl.debug_barrier()  # all threads have stored their share before one of them releases it
    return tl.atomic_add(p_arrived, 1, sem="acq_rel", scope="gpu") == num_used - 1


@triton.jit(do_not_specialize=["num_seqs", "stride_table", "ahead_lines"])
def attend_kernel(
    q: tl.tensor,  # [N, num_q_heads, HEAD_DIM]
    k_pages: tl.tensor,  # [num_pages, TOKENS_PER_PAGE, num_kv_heads, HEAD_DIM]
    v_pages: tl.tensor,  # [num_pages, TOKENS_PER_PAGE, num_kv_heads, HEAD_DIM]
    out: tl.tensor,  # [N, num_q_heads, HEAD_DIM]
    # The next four are None if there is one split.
    part: tl.tensor,  # [N, num_q_heads, num_splits, HEAD_DIM] fp32
    part_max: tl.tensor,  # [N, num_q_heads, num_splits] fp32, of scores in base 2
    part_sum: tl.tensor,  # [N, num_q_heads, num_splits] fp32
    arrived: tl.tensor,  # [N, num_kv_heads] int32, all 0 before and after
    ahead: tl.tensor,  # a matrix that the pass reads soon
    ahead_lines: tl.tensor,  # of it, to prefetch
    seq_slot: tl.tensor,  # [S]
    seq_start: tl.tensor,  # [S + 1]
    seq_kv_len: tl.tensor,  # [S]
    page_table: tl.tensor,  # [B, P]
    num_seqs: tl.tensor,
    scale_log2: tl.tensor,  # scale * log2(e)
    stride_q_row: tl.tensor,
    stride_q_head: tl.tensor,
    stride_k_page: tl.tensor,
    stride_k_token: tl.tensor,
    stride_k_head: tl.tensor,
    stride_v_page: tl.tensor,
    stride_v_token: tl.tensor,
    stride_v_head: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_head: tl.tensor,
    stride_table: tl.tensor,
    GROUP: tl.constexpr,  # query heads that share one K/V head
    HEAD_DIM: tl.constexpr,
    TOKENS_PER_PAGE: tl.constexpr,
    WINDOW: tl.constexpr,  # tokens a row sees, itself included; 0: all
    MAX_SPLITS: tl.constexpr,  # at least the splits of the grid
    MIN_BLOCKS: tl.constexpr,  # steps of a split, unless it is the last one
    BLOCK_M: tl.constexpr,  # rows times query heads of a tile
    BLOCK_N: tl.constexpr,  # keys of a step
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,  # at least S
    SCHEDULED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    allow_next_kernel(OVERLAP)
    if not SCHEDULED:
        wait_for_previous_kernel(OVERLAP)
    i_tile, i_head, i_split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ROWS: tl.constexpr = BLOCK_M // GROUP
    # Sequence s owns the tiles from seq_start[s] // ROWS + s on: room for its last, partial one.
    o_seq = tl.arange(0, BLOCK_S)
    m_seq = o_seq < num_seqs
    b_start = tl.load(seq_start + o_seq, mask=m_seq, other=1 << 30)
    b_stop = tl.load(seq_start + 1 + o_seq, mask=m_seq, other=0)
    b_kv_len = tl.load(seq_kv_len + o_seq, mask=m_seq, other=0)
    b_slot = tl.load(seq_slot + o_seq, mask=m_seq, other=0)
    i_seq = tl.sum((b_start // ROWS + o_seq <= i_tile).to(tl.int32)) - 1
    m_this = o_seq == i_seq
    i_start = tl.sum(tl.where(m_this, b_start, 0))
    i_stop = tl.sum(tl.where(m_this, b_stop, 0))
    kv_len = tl.sum(tl.where(m_this, b_kv_len, 0))
    i_slot = tl.sum(tl.where(m_this, b_slot, 0))
    i_row = i_start + (i_tile - i_start // ROWS - i_seq) * ROWS

    position = kv_len - (i_stop - i_row)  # of the tile's first row
    end_key = tl.minimum(position + ROWS, kv_len)
    first_key = tl.maximum(position + 1 - WINDOW, 0) if WINDOW > 0 else 0
    first_block = first_key // BLOCK_N
    end_block = tl.cdiv(end_key, BLOCK_N)
    num_blocks = tl.where(i_row < i_stop, end_block - first_block, 0)
    blocks_per_split = tl.maximum(tl.cdiv(num_blocks, tl.num_programs(2)), MIN_BLOCKS)
    i_first = first_block + i_split * blocks_per_split
    i_end = tl.minimum(i_first + blocks_per_split, first_block + num_blocks)
    num_used = tl.cdiv(num_blocks, blocks_per_split)  # splits with keys
    p_table = page_table + i_slot.to(tl.int64) * stride_table

    if SCHEDULED:
        if OVERLAP:  # noqa: SIM102 - known when it is compiled, what follows is not
            if i_first < i_end:
                p_k, p_v = k_pages + i_head * stride_k_head, v_pages + i_head * stride_v_head
                last_key = tl.minimum(i_end * BLOCK_N, end_key) - 1
                for i in tl.static_range(_PREFETCHED // BLOCK_N):
                    o_key = (i_first + i) * BLOCK_N + tl.arange(0, BLOCK_N)
                    o_key = tl.minimum(o_key, last_key)
                    b_page = tl.load(p_table + o_key // TOKENS_PER_PAGE).to(tl.int64)
                    o_token = o_key % TOKENS_PER_PAGE
                    prefetch_rows(p_k + b_page * stride_k_page + o_token * stride_k_token, HEAD_DIM)
                    prefetch_rows(p_v + b_page * stride_v_page + o_token * stride_v_token, HEAD_DIM)
        wait_for_previous_kernel(OVERLAP)
    is_last = num_used < 0  # no
    if i_split < num_used:
        o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        o_row = i_row + o_m // GROUP
        o_head = i_head * GROUP + o_m % GROUP
        m_m, m_d = (o_m < ROWS * GROUP) & (o_row < i_stop), o_d < HEAD_DIM
        b_position = position + o_m // GROUP
        p_q = q + o_row.to(tl.int64) * stride_q_row + o_head * stride_q_head
        b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)

        b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        # The pages of a step are read in the one before: it knows at once where its keys lie.
        o_next = i_first * BLOCK_N + tl.arange(0, BLOCK_N)
        m_next = (o_next >= first_key) & (o_next < end_key)
        b_next = tl.load(p_table + o_next // TOKENS_PER_PAGE, mask=m_next, other=0)
        for i_block in range(i_first, i_end):
            o_key = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
            # Memory past the last key may hold NaN: it is never loaded, not masked afterwards.
            m_key = (o_key >= first_key) & (o_key < end_key)
            b_page, o_token = b_next.to(tl.int64), o_key % TOKENS_PER_PAGE
            m_next = (o_key + BLOCK_N < end_key) & (i_block + 1 < i_end)
            b_next = tl.load(p_table + (o_key + BLOCK_N) // TOKENS_PER_PAGE, mask=m_next, other=0)
            p_k = (
                k_pages + b_page * stride_k_page + o_token * stride_k_token + i_head * stride_k_head
            )
            p_v = (
                v_pages + b_page * stride_v_page + o_token * stride_v_token + i_head * stride_v_head
            )
            m_load = m_key[:, None] & m_d[None, :]
            b_k = tl.load(p_k[:, None] + o_d[None, :], mask=m_load, other=0.0)
            b_score = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_log2
            m_seen = m_key[None, :] & (o_key[None, :] <= b_position[:, None])
            if WINDOW > 0:
                m_seen &= o_key[None, :] > b_position[:, None] - WINDOW
            b_score = tl.where(m_seen, b_score, float("-inf"))
            b_new_max = tl.maximum(b_max, tl.max(b_score, 1))
            b_shift = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # no -inf - -inf
            b_weight = tl.exp2(b_score - b_shift[:, None])
            b_decay = tl.exp2(b_max - b_shift)
            b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
            b_v = tl.load(p_v[:, None] + o_d[None, :], mask=m_load, other=0.0)
            b_acc = b_acc * b_decay[:, None]
            b_acc = tl.dot(b_weight.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
            b_max = b_new_max

        m_out = m_m[:, None] & m_d[None, :]
        b_out = (b_acc / b_sum[:, None]).to(out.dtype.element_ty)
        p_out = out + o_row.to(tl.int64) * stride_out_row + o_head * stride_out_head
        p_out = p_out[:, None] + o_d[None, :]
        tl.store(p_out, b_out, mask=m_out & (num_used == 1))  # else there is more to come
        if part is not None:  # noqa: SIM102 - known when it is compiled, what follows is not
            if num_used > 1:
                o_part = o_row.to(tl.int64) * (tl.num_programs(1) * GROUP) + o_head
                o_part = o_part * tl.num_programs(2) + i_split
                # The counter of the tile's first row: no two tiles share one, however rows divide.
                p_arrived = arrived + i_row * tl.num_programs(1) + i_head
                is_last = _leave(
                    part, part_max, part_sum, p_arrived, b_acc, b_max, b_sum, o_part, m_m, m_d,
                    num_used, HEAD_DIM, BLOCK_D,
                )  # fmt: skip
    if part is not None:  # noqa: SIM102
        if is_last:
            tl.store(arrived + i_row * tl.num_programs(1) + i_head, 0)  # for the next launch
            num_rows = tl.minimum(ROWS, i_stop - i_row)
            _combine(
                out, part, part_max, part_sum, i_row, num_rows, i_head, num_used, stride_out_row,
                stride_out_head, GROUP, HEAD_DIM, BLOCK_D, MAX_SPLITS,
            )  # fmt: skip
    if not is_last:  # the last one has no time
        i_program = (i_tile * tl.num_programs(1) + i_head) * tl.num_programs(2) + i_split
        num_programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
        prefetch_ahead(ahead, ahead_lines, i_program, num_programs)
