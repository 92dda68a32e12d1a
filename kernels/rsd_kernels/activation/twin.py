"""Plain-PyTorch twin of the gated activation of a decoder's MLP (SwiGLU, Shazeer, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def silu_mul(
    gate_up: Tensor,  # [n, 2 * width]: gate, then up
    *,
    out: Tensor | None = None,  # [n, width]
) -> Tensor:
    """silu(gate) * up.

    Returns:
        [n, width] in the dtype of `gate_up`; `out` itself when it is given.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.mul(functional.silu(gate), up, out=out)
