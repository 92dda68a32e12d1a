"""Tables of rotary position embedding (Su et al., 2021), half-split layout.

Dimension i of a head is paired with i + head_dim / 2. For every position the tables hold the
cosines twice, and the sines first negated, then as they are, so that
x cos + (x with its halves swapped) sin is the rotation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(
    inv_freq: Tensor,  # [head_dim / 2] fp32
    num_positions: int,
    scale: float | Tensor = 1.0,  # of all pairs, or [head_dim / 2]
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
    """The rows of N positions, both [N, head_dim]: gathered once a pass, for all layers."""
    return cos_table.index_select(0, position), sin_table.index_select(0, position)
