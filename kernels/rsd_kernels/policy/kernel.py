"""The weighting functions as a Triton device function (Liao et al., ICML 2025, Table 1).

w(r): p | 1(r >= d) | min(1, max(0, r)) | max(0, r / (1 + r)) | 1 / (1 + exp(-a (r - d)))

Twin: `rsd_kernels.policy.formula.accept_probability`; both in float64, for a few numbers a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rsd_kernels.policy.formula import PolicyKind

_CONSTANT = tl.constexpr(int(PolicyKind.CONSTANT))
_THRESHOLD = tl.constexpr(int(PolicyKind.THRESHOLD))
_CLIP = tl.constexpr(int(PolicyKind.CLIP))
_SIGMOIDAL = tl.constexpr(int(PolicyKind.SIGMOIDAL))
_LARGEST_EXPONENT = tl.constexpr(700.0)


@triton.jit
def accepts(
    b_kind: tl.tensor, b_a: tl.tensor, b_b: tl.tensor, b_reward: tl.tensor, b_uniform: tl.tensor
) -> tl.tensor:
    """True where the draw in [0, 1) is below w(reward); never for a reward that is NaN."""
    b_r = b_reward.to(tl.float64)
    b_a64, b_b64 = b_a.to(tl.float64), b_b.to(tl.float64)
    b_z = -b_a64 * (b_r - b_b64)
    b_logistic = tl.where(
        b_z < _LARGEST_EXPONENT, 1.0 / (1.0 + tl.exp(tl.minimum(b_z, _LARGEST_EXPONENT))), 0.0
    )
    b_positive = tl.where(b_r > 0, b_r, 1.0)
    b_sigmoidal = tl.where(b_r > 0, 1.0 / (1.0 + 1.0 / b_positive), 0.0)
    b_w = tl.where(b_kind == _SIGMOIDAL, b_sigmoidal, b_logistic)
    b_w = tl.where(b_kind == _CLIP, tl.minimum(tl.maximum(b_r, 0.0), 1.0), b_w)
    b_w = tl.where(b_kind == _THRESHOLD, tl.where(b_r >= b_a64, 1.0, 0.0), b_w)
    b_w = tl.where(b_kind == _CONSTANT, b_a64, b_w)
    return (b_uniform.to(tl.float64) < b_w) & (b_reward == b_reward)
