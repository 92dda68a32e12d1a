"""The buffers that a forward writes into, so that a captured forward allocates nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig


@dataclass(frozen=True)
class Activations:
    """The buffers of a pass of at most `max_rows` rows; every layer reuses them."""

    hidden: Tensor  # [max_rows, hidden] the residual stream
    normed: Tensor  # [max_rows, hidden]
    qkv: Tensor  # [max_rows, q_width + 2 * kv_width]
    attended: Tensor  # [max_rows, q_width]
    gate_up: Tensor  # [max_rows, 2 * intermediate]
    gated: Tensor  # [max_rows, intermediate]
    last: Tensor  # [max_rows, hidden] rows of the places, for the LM head

    @classmethod
    def allocate(
        cls, config: ModelConfig, max_rows: int, dtype: torch.dtype, device: torch.device
    ) -> Activations:
        """Empty buffers.

        Raises:
            ValueError: `max_rows` is not positive.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        return cls(
            **{
                name: torch.empty(max_rows, width, dtype=dtype, device=device)
                for name, width in cls._widths(config).items()
            }
        )

    @classmethod
    def num_bytes(cls, config: ModelConfig, max_rows: int, dtype: torch.dtype) -> int:
        """What `allocate` takes."""
        return max_rows * sum(cls._widths(config).values()) * dtype.itemsize

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
