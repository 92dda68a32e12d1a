"""Plain-PyTorch twin of the gated activation of a decoder's MLP (Shazeer, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gate_mul(
    gate_up: Tensor,  # [n, 2 * width]: gate, then up
    *,
    gelu: bool = False,
    out: Tensor | None = None,  # [n, width]
) -> Tensor:
    """silu(gate) * up or, with `gelu`, GELU in its tanh form (Hendrycks and Gimpel, 2016).

    Returns:
        [n, width] in the dtype of `gate_up`; `out` itself when it is given.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    active = functional.gelu(gate, approximate="tanh") if gelu else functional.silu(gate)
    return torch.mul(active, up, out=out)
