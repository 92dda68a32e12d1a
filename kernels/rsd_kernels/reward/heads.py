"""Weights that turn a hidden state into a reward, the final norm included."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MAX_ENSEMBLE = 1024
_ENSEMBLE_UNITS = 128


@dataclass(frozen=True)
class _Head:
    norm_weight: Tensor  # [hidden] of the decoder's final RMSNorm
    eps: float

    def own_tensors(self) -> list[Tensor]:
        """The weights of the head itself, without the norm's."""
        values = [getattr(self, field.name) for field in fields(self)[1:]]
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class ValueHead(_Head):
    """offset + scale * sigmoid(w · norm(h) + b).

    The softmax of two classes is the same with w and b the difference of their rows.
    """

    weight: Tensor  # [1, hidden]
    bias: Tensor  # [1]
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def allocate(cls, norm_weight: Tensor, eps: float, dtype: torch.dtype) -> ValueHead:
        """Unfilled weights on the norm's device."""
        weight = norm_weight.new_empty(1, norm_weight.shape[0], dtype=dtype)
        return cls(norm_weight, eps, weight, weight.new_empty(1))


@dataclass(frozen=True)
class TwoClassHead(_Head):
    """softmax(W2 relu(W1 norm(h) + b1) + b2)[1]."""

    inner: Tensor  # [inner, hidden]
    inner_bias: Tensor  # [inner]
    classes: Tensor  # [2, inner]
    classes_bias: Tensor  # [2]

    @classmethod
    def allocate(cls, norm_weight: Tensor, eps: float, dtype: torch.dtype) -> TwoClassHead:
        """Unfilled weights on the norm's device, with as many inner units as the decoder's size."""
        size = norm_weight.shape[0]
        inner = norm_weight.new_empty(size, size, dtype=dtype)
        empty = inner.new_empty
        return cls(norm_weight, eps, inner, empty(size), empty(2, size), empty(2))


@dataclass(frozen=True)
class EnsembleHead(_Head):
    """The mean of sigmoid(w3 · relu(W2 relu(W1 norm(h) + b1) + b2) + b3) over heads of that form.

    Matrices map their first dimension to the second, as ActPRM stores them.
    """

    inner: Tensor  # [heads, hidden, units]
    inner_bias: Tensor  # [heads, units]
    middle: Tensor  # [heads, units, units]
    middle_bias: Tensor  # [heads, units]
    out: Tensor  # [heads, units, 1]
    out_bias: Tensor  # [heads, 1]

    @classmethod
    def allocate(
        cls, norm_weight: Tensor, eps: float, dtype: torch.dtype, *, num_heads: int
    ) -> EnsembleHead:
        """Unfilled weights on the norm's device, with as many units as ActPRM has."""

        def empty(*shape: int) -> Tensor:
            return norm_weight.new_empty(num_heads, *shape, dtype=dtype)

        units = _ENSEMBLE_UNITS
        return cls(
            norm_weight, eps, empty(norm_weight.shape[0], units), empty(units),
            empty(units, units), empty(units), empty(units, 1), empty(1),
        )  # fmt: skip


@dataclass(frozen=True)
class ClassesHead(_Head):
    """The mean of `values` under softmax(W norm(h) + b); `greedy`: that of the likeliest class."""

    weight: Tensor  # [classes, hidden]
    bias: Tensor  # [classes]
    values: Tensor  # [classes] float32
    greedy: bool = False

    @classmethod
    def allocate(
        cls, norm_weight: Tensor, eps: float, dtype: torch.dtype, *, num_classes: int
    ) -> ClassesHead:
        """Unfilled weights on the norm's device."""
        weight = norm_weight.new_empty(num_classes, norm_weight.shape[0], dtype=dtype)
        values = weight.new_empty(num_classes, dtype=torch.float32)
        return cls(norm_weight, eps, weight, weight.new_empty(num_classes), values)


RewardHead = ValueHead | TwoClassHead | EnsembleHead | ClassesHead
