"""The weights that turn the last hidden row of a step into a reward, final norm included."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ValueHead:
    """sigmoid(weight · norm(h) + bias): Skywork-o1-Open-PRM, in the layout of trl's value head."""

    norm_weight: Tensor  # [hidden] of the model's final RMSNorm
    eps: float
    weight: Tensor  # [1, hidden]
    bias: Tensor  # [1]


@dataclass(frozen=True)
class TwoClassHead:
    """softmax(W2 relu(W1 norm(h) + b1) + b2)[1]: Qwen2.5-Math-PRM (Zhang et al., 2025)."""

    norm_weight: Tensor  # [hidden] of the model's final RMSNorm
    eps: float
    inner: Tensor  # [inner, hidden]
    inner_bias: Tensor  # [inner]
    classes: Tensor  # [2, inner]
    classes_bias: Tensor  # [2]


RewardHead = ValueHead | TwoClassHead
