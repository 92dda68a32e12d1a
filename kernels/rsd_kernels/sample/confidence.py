"""The draft's confidence in the step that it writes, token by token, from its own distribution.

c = log p(token), or 1 - H(p) / log V; mean of c over the step's tokens: m += (c - m) / n

with p = softmax of the model's logits as they were, H its entropy, V ids, n tokens so far.

Twin: `add_confidence` in `rsd_kernels.sample.twin`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.state.enums import ConfidenceKind

_ENTROPY = tl.constexpr(int(ConfidenceKind.ENTROPY))


@triton.jit
def _entropy(
    p_logits: tl.tensor,
    p_raw: tl.tensor,
    raw: tl.tensor,
    lse: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    total = lse * 0
    start = 0
    while start < vocabulary:
        b_id = start + tl.arange(0, BLOCK)
        m_id = b_id < vocabulary
        b_raw = tl.load(p_raw + b_id, mask=m_id & raw, other=0.0)
        b_x = tl.load(p_logits + b_id, mask=m_id & (raw == 0), other=0.0)
        b_log = tl.where(raw, b_raw, b_x) - lse
        total -= tl.sum(tl.where(m_id, tl.exp(b_log) * b_log, 0.0))
        start += BLOCK
    return total


@triton.jit
def add_confidence(
    state: tl.tuple,
    scratch: tl.tuple,
    p_logits: tl.tensor,
    i_place: tl.tensor,
    slot: tl.tensor,
    token: tl.tensor,
    vocabulary: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Takes a token that is about to be appended into the mean of its step."""
    raw = tl.load(scratch.place_raw + i_place) != 0
    p_raw = scratch.raw + i_place.to(tl.int64) * vocabulary
    lse = tl.load(scratch.place_lse + i_place)
    if KIND == _ENTROPY:
        entropy = _entropy(p_logits, p_raw, raw, lse, vocabulary, BLOCK)
        certain = 1.0 - entropy / tl.log((vocabulary + lse * 0).to(tl.float32))
    else:
        logit = tl.load(p_raw + token, mask=raw, other=0.0)
        certain = tl.where(raw, logit, tl.load(p_logits + token)) - lse
    before = tl.load(state.length + slot) - tl.load(state.committed + slot)
    mean = tl.load(state.confidence + slot, mask=before > 0, other=0.0)
    tl.debug_barrier()  # every warp has read the mean
    tl.store(state.confidence + slot, mean + (certain - mean) / (before + 1).to(tl.float32))
