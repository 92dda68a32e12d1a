"""How each family of process reward models turns a hidden state into a reward in [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig
from rsd_kernels.reward import heads as reward_heads


@dataclass(frozen=True)
class RewardHead(ABC):
    """A small network on the final hidden state at the end of a step. All fields are tensors."""

    @classmethod
    @abstractmethod
    def allocate(cls, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> RewardHead:
        """Empty weights; `dtype` is that of the decoder."""

    @abstractmethod
    def after(self, norm_weight: Tensor, eps: float) -> reward_heads.RewardHead:
        """The head as the kernels take it, final norm of the decoder included."""

    @abstractmethod
    def places(self) -> dict[str, Tensor]:
        """Where each tensor of the checkpoint goes."""

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class ValueHead(RewardHead):
    """sigmoid(w · h + b): Skywork-o1-Open-PRM, in the layout of trl's value head.

    The head is computed in fp32, as in the authors' code; its dropout is for training only.
    """

    weight: Tensor  # [1, hidden] fp32
    bias: Tensor  # [1] fp32

    @classmethod
    def allocate(cls, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> ValueHead:
        return cls(
            weight=torch.empty(1, config.hidden_size, dtype=torch.float32, device=device),
            bias=torch.empty(1, dtype=torch.float32, device=device),
        )

    def after(self, norm_weight: Tensor, eps: float) -> reward_heads.RewardHead:
        return reward_heads.ValueHead(norm_weight, eps, self.weight, self.bias)

    def places(self) -> dict[str, Tensor]:
        return {"v_head.summary.weight": self.weight, "v_head.summary.bias": self.bias}


@dataclass(frozen=True)
class TwoClassHead(RewardHead):
    """softmax(W2 relu(W1 h + b1) + b2)[1]: Qwen2.5-Math-PRM (Zhang et al., 2025)."""

    inner: Tensor  # [hidden, hidden]
    inner_bias: Tensor  # [hidden]
    classes: Tensor  # [2, hidden]
    classes_bias: Tensor  # [2]

    @classmethod
    def allocate(
        cls, config: ModelConfig, dtype: torch.dtype, device: torch.device
    ) -> TwoClassHead:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        hidden = config.hidden_size
        return cls(empty(hidden, hidden), empty(hidden), empty(2, hidden), empty(2))

    def after(self, norm_weight: Tensor, eps: float) -> reward_heads.RewardHead:
        return reward_heads.TwoClassHead(
            norm_weight, eps, self.inner, self.inner_bias, self.classes, self.classes_bias
        )

    def places(self) -> dict[str, Tensor]:
        return {
            "score.0.weight": self.inner,
            "score.0.bias": self.inner_bias,
            "score.2.weight": self.classes,
            "score.2.bias": self.classes_bias,
        }


REWARD_HEADS: dict[str, type[RewardHead]] = {
    "Qwen2ForPrmModel": ValueHead,
    "Qwen2ForProcessRewardModel": TwoClassHead,
}
