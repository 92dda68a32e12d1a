"""Plain-PyTorch twin of the decode projection: y = x Wᵀ (+ bias) for a few rows."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_projection(
    x: Tensor,  # [num_rows, num_inputs]
    weight: Tensor,  # [num_outputs, num_inputs]
    bias: Tensor | None = None,  # [num_outputs]
    *,
    out: Tensor | None = None,  # [num_rows, num_outputs]
    overlap_previous: bool = False,
) -> Tensor:
    """x Wᵀ + bias, in the dtype of `x`; `out` itself when it is given.

    `overlap_previous` concerns how the kernel is launched and changes nothing here.
    """
    del overlap_previous
    product = torch.nn.functional.linear(x, weight, bias)
    return product if out is None else out.copy_(product)
