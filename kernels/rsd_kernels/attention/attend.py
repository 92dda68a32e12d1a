"""Attention over paged K and V in Triton: decode rows and chunks of any sequences in one launch.

out[n, h] = sum_j softmax_j(q[n, h] . k[j, h / GROUP] * scale) v[j, h / GROUP]

over the keys j of row n's sequence up to itself. The keys are split over programs (Flash-Decoding;
Dao et al., 2023), so that one sequence with two K/V heads still fills the device; a second launch
combines the splits. The grid depends on shapes alone: lengths and page tables are read on the
device, and programs without work return at once. A captured launch therefore serves any lengths.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.overlap import allow_next_kernel, prefetch_rows, wait_for_previous_kernel


@triton.jit
def _prefetch_tokens(
    pages: tl.tensor,  # K or V of one head
    p_table: tl.tensor,  # pages of one sequence
    token: tl.tensor,  # [N] tokens of the sequence; the new ones may not be written yet
    stride_page: tl.tensor,
    stride_token: tl.tensor,
    PER_PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> None:
    """Asks the L2 cache for K or V of some tokens."""
    i_page = tl.load(p_table + token // PER_PAGE).to(tl.int64)
    prefetch_rows(pages + i_page * stride_page + token % PER_PAGE * stride_token, HEAD_DIM)


@triton.jit(do_not_specialize=["num_seqs"])
def attend_kernel(
    q: tl.tensor,  # [N, num_q_heads, HEAD_DIM]
    k_pages: tl.tensor,  # [num_pages, TOKENS_PER_PAGE, num_kv_heads, HEAD_DIM]
    v_pages: tl.tensor,  # [num_pages, TOKENS_PER_PAGE, num_kv_heads, HEAD_DIM]
    out: tl.tensor,  # [N, num_q_heads, HEAD_DIM]
    part: tl.tensor,  # [N, num_q_heads, NUM_SPLITS, HEAD_DIM] fp32
    part_max: tl.tensor,  # [N, num_q_heads, NUM_SPLITS] fp32, of scores in base 2
    part_sum: tl.tensor,  # [N, num_q_heads, NUM_SPLITS] fp32
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
    NUM_SPLITS: tl.constexpr,
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
    b_start = tl.load(seq_start + o_seq, mask=o_seq < num_seqs, other=1 << 30)
    i_seq = tl.sum((b_start // ROWS + o_seq <= i_tile).to(tl.int32)) - 1
    i_start = tl.load(seq_start + i_seq)
    i_stop = tl.load(seq_start + i_seq + 1)
    i_row = i_start + (i_tile - i_start // ROWS - i_seq) * ROWS

    kv_len = tl.load(seq_kv_len + i_seq)
    position = kv_len - (i_stop - i_row)  # of the tile's first row
    end_key = tl.minimum(position + ROWS, kv_len)
    first_key = tl.maximum(position + 1 - WINDOW, 0) if WINDOW > 0 else 0
    first_block = first_key // BLOCK_N
    end_block = tl.cdiv(end_key, BLOCK_N)
    blocks_per_split = tl.cdiv(end_block - first_block, NUM_SPLITS)
    i_first = first_block + i_split * blocks_per_split
    i_end = tl.minimum(i_first + blocks_per_split, end_block)
    p_table = page_table + tl.load(seq_slot + i_seq).to(tl.int64) * stride_table

    if SCHEDULED:
        if OVERLAP:  # noqa: SIM102 - known when it is compiled, what follows is not
            if (i_row < i_stop) & (i_first < i_end):
                o_first = tl.minimum(i_first * BLOCK_N + tl.arange(0, BLOCK_N), end_key - 1)
                p_k, p_v = k_pages + i_head * stride_k_head, v_pages + i_head * stride_v_head
                _prefetch_tokens(
                    p_k, p_table, o_first, stride_k_page, stride_k_token, TOKENS_PER_PAGE, HEAD_DIM
                )
                _prefetch_tokens(
                    p_v, p_table, o_first, stride_v_page, stride_v_token, TOKENS_PER_PAGE, HEAD_DIM
                )
        wait_for_previous_kernel(OVERLAP)
    if i_row >= i_stop:
        return

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
    for i_block in range(i_first, i_end):
        o_key = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
        # Memory past the last key may hold NaN: it is never loaded, not masked afterwards.
        m_key = (o_key >= first_key) & (o_key < end_key)
        b_page = tl.load(p_table + o_key // TOKENS_PER_PAGE, mask=m_key, other=0).to(tl.int64)
        o_token = o_key % TOKENS_PER_PAGE
        p_k = k_pages + b_page * stride_k_page + o_token * stride_k_token + i_head * stride_k_head
        p_v = v_pages + b_page * stride_v_page + o_token * stride_v_token + i_head * stride_v_head
        b_k = tl.load(p_k[None, :] + o_d[:, None], mask=m_key[None, :] & m_d[:, None], other=0.0)
        b_score = tl.dot(b_q, b_k, input_precision="ieee") * scale_log2
        m_seen = m_key[None, :] & (o_key[None, :] <= b_position[:, None])
        if WINDOW > 0:
            m_seen &= o_key[None, :] > b_position[:, None] - WINDOW
        b_score = tl.where(m_seen, b_score, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1))
        b_shift = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # no -inf - -inf
        b_weight = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        b_v = tl.load(p_v[:, None] + o_d[None, :], mask=m_key[:, None] & m_d[None, :], other=0.0)
        b_acc = b_acc * b_decay[:, None]
        b_acc = tl.dot(b_weight.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
        b_max = b_new_max

    m_out = m_m[:, None] & m_d[None, :]
    if NUM_SPLITS == 1:
        p_out = out + o_row.to(tl.int64) * stride_out_row + o_head * stride_out_head
        b_out = b_acc / b_sum[:, None]
        tl.store(p_out[:, None] + o_d[None, :], b_out.to(out.dtype.element_ty), mask=m_out)
    else:
        # A split in which a row sees no key says so by -inf; the rest of it is not read.
        num_q_heads = tl.num_programs(1) * GROUP
        o_part = (o_row.to(tl.int64) * num_q_heads + o_head) * NUM_SPLITS + i_split
        b_max = tl.where(b_sum == b_sum, b_max, float("nan"))  # which tl.max drops on a device
        tl.store(part_max + o_part, b_max, mask=m_m)
        if i_first < i_end:
            tl.store(part_sum + o_part, b_sum, mask=m_m)
            tl.store(part + o_part[:, None] * HEAD_DIM + o_d[None, :], b_acc, mask=m_out)


@triton.jit(do_not_specialize=["num_seqs"])
def combine_kernel(
    out: tl.tensor,  # [N, num_q_heads, HEAD_DIM]
    part: tl.tensor,  # [N, num_q_heads, NUM_SPLITS, HEAD_DIM] fp32
    part_max: tl.tensor,  # [N, num_q_heads, NUM_SPLITS] fp32
    part_sum: tl.tensor,  # [N, num_q_heads, NUM_SPLITS] fp32
    seq_start: tl.tensor,  # [S + 1]
    num_seqs: tl.tensor,
    stride_out_row: tl.tensor,
    stride_out_head: tl.tensor,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SCHEDULED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """out[n, h] = sum_s 2^max[s] part[s] / sum_s 2^max[s] sum[s]"""
    allow_next_kernel(OVERLAP)
    if not SCHEDULED:
        wait_for_previous_kernel(OVERLAP)
    i_row, i_head = tl.program_id(0), tl.program_id(1)
    num_rows = tl.load(seq_start + num_seqs)
    if SCHEDULED:
        wait_for_previous_kernel(OVERLAP)
    if i_row >= num_rows:  # a row of no sequence
        return
    o_split, o_d = tl.arange(0, NUM_SPLITS), tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD_DIM
    o_part = (i_row.to(tl.int64) * tl.num_programs(1) + i_head) * NUM_SPLITS + o_split
    b_max = tl.load(part_max + o_part)
    m_split = b_max > float("-inf")
    b_weight = tl.exp2(b_max - tl.max(b_max, 0))
    b_sum = tl.load(part_sum + o_part, mask=m_split, other=0.0)
    b_part = tl.load(
        part + o_part[:, None] * HEAD_DIM + o_d[None, :],
        mask=m_split[:, None] & m_d[None, :],
        other=0.0,
    )
    b_out = tl.sum(b_part * b_weight[:, None], 0) / tl.sum(b_sum * b_weight, 0)
    p_out = out + i_row.to(tl.int64) * stride_out_row + i_head * stride_out_head + o_d
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_d)
