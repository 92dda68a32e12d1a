"""Plain-PyTorch twin of RMSNorm (Zhang and Sennrich, 2019), of whole rows and of single heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(
    x: Tensor,  # [..., width]
    weight: Tensor,  # [width]
    eps: float,
    *,
    out: Tensor | None = None,  # [..., width]; may be `x` itself
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight, summed in fp32 (in fp64 for fp64 input).

    Returns:
        [..., width] in the dtype of `x`; `out` itself when it is given.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = functional.rms_norm(x.to(wide), (x.shape[-1],), weight.to(wide), eps)
    return normed.to(x.dtype) if out is None else out.copy_(normed)
