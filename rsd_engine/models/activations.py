"""The buffers that a forward writes into, so that a captured forward allocates nothing.

All are cut from one byte buffer. Passes run one at a time, so models can share it: give each the
same `arena`, as large as the largest model needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig

_ALIGNMENT = 256


@dataclass(frozen=True)
class Activations:
    """The buffers of a pass of at most `max_rows` rows; every layer reuses them."""

    hidden: Tensor  # [max_rows, hidden] the residual stream
    normed: Tensor  # [max_rows, hidden]
    qkv: Tensor  # [max_rows, q_width + 2 * kv_width]
    attended: Tensor  # [max_rows, q_width]
    gate_up: Tensor  # [max_rows, 2 * intermediate]
    gated: Tensor  # [max_rows, intermediate]
    last: Tensor  # [max_rows, hidden] last rows of the sequences, for the heads

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        arena: Tensor | None = None,  # [bytes] uint8
    ) -> Activations:
        """Cuts the buffers from `arena`, or from a new one.

        Raises:
            ValueError: if `max_rows` is not positive or `arena` is too small.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        needed = cls.num_bytes(config, max_rows, dtype)
        if arena is None:
            arena = torch.empty(needed, dtype=torch.uint8, device=device)
        if arena.numel() < needed:
            raise ValueError(f"arena has {arena.numel()} bytes; it must have at least {needed}")
        buffers, start = {}, 0
        for name, width in cls._widths(config).items():
            size = max_rows * width * dtype.itemsize
            buffers[name] = arena[start : start + size].view(dtype).view(max_rows, width)
            start += _aligned(size)
        return cls(**buffers)

    @classmethod
    def num_bytes(cls, config: ModelConfig, max_rows: int, dtype: torch.dtype) -> int:
        """The size of the arena for `max_rows` rows of this model."""
        widths = cls._widths(config).values()
        return sum(_aligned(max_rows * width * dtype.itemsize) for width in widths)

    @staticmethod
    def _widths(config: ModelConfig) -> dict[str, int]:
        return {
            "hidden": config.hidden_size,
            "normed": config.hidden_size,
            "qkv": config.q_width + 2 * config.kv_width,
            "attended": config.q_width,
            "gate_up": 2 * config.intermediate_size,
            "gated": config.intermediate_size,
            "last": config.hidden_size,
        }

    @property
    def max_rows(self) -> int:
        return self.hidden.shape[0]

    def narrow(self, num_rows: int) -> Activations:
        """Views of the first `num_rows` rows."""
        return Activations(**{f.name: getattr(self, f.name)[:num_rows] for f in fields(self)})


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
