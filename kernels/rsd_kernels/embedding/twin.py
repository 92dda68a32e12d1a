"""Plain-PyTorch twin of the embedding of new tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def embed(
    table: Tensor,  # [vocab_size, width]
    token: Tensor,  # [N] int32
    *,
    scale: float = 1.0,
    out: Tensor,  # [N, width]
) -> Tensor:
    """Row `token[n]` of the table, times `scale`. Returns `out`."""
    torch.index_select(table, 0, token, out=out)
    return out if scale == 1.0 else out.mul_(scale)
