"""Plain-PyTorch twin of rotary position embedding (Su et al., 2021), half-split layout.

Dimension i of a head is paired with i + head_dim / 2. The tables hold, for every position, the
cosines twice and the sines once with a minus sign and once without, so that
x cos + (x with its halves swapped) sin is the rotation.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


def rope_tables(
    inv_freq: Tensor,  # [head_dim / 2] fp32
    num_positions: int,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines times `scale`, both [num_positions, head_dim] fp32."""
    position = torch.arange(num_positions, dtype=torch.float32, device=inv_freq.device)
    angle = torch.outer(position, inv_freq.float())
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rope_rows(
    cos_table: Tensor,  # [num_positions, head_dim] fp32
    sin_table: Tensor,  # [num_positions, head_dim] fp32
    position: Tensor,  # [N] int32
) -> tuple[Tensor, Tensor]:
    """Table rows of N positions, both [N, head_dim]: gathered once a pass for all layers."""
    return cos_table.index_select(0, position), sin_table.index_select(0, position)


def rope(
    x: Tensor,  # [N, num_heads, head_dim], changed in place; heads of q and k may come in one call
    cos: Tensor,  # [N, head_dim] fp32
    sin: Tensor,  # [N, head_dim] fp32, first half negated
) -> None:
    """Rotates every head of row n by the angles of row n, in fp32 (fp64 for fp64 input)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    if x.dtype in _WIDE:
        x.mul_(cos).addcmul_(swapped, sin)
    else:
        x.copy_(x * cos + swapped * sin)  # a narrow type times fp32 is fp32
