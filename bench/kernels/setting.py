"""What a kernel benchmark runs on: device, dtype, shapes of models, and the ops it measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rsd_kernels.aot.launches import MODEL_SHAPES, DecoderShape
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.model_ops import ModelOps, model_ops

TINY = {"tiny": DecoderShape(64, 96, 2, 4, 2, 16, 160, True)}
REAL = {name: MODEL_SHAPES[name] for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B")}
_MAX_COPIES = 256


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark: `real` on a GPU, `tiny` on a CPU.

    Attributes:
        context: tokens that a sequence holds.
        cold_bytes: memory that all copies of an op read together: more than a cache holds.
    """

    device: torch.device
    dtype: torch.dtype
    shapes: dict[str, DecoderShape]
    rows: tuple[int, ...]
    context: int
    runs: int
    cold_bytes: int

    @classmethod
    def real(cls, shapes: dict[str, DecoderShape], runs: int) -> Setting:
        return cls(
            device=torch.device("cuda", torch.cuda.current_device()),
            dtype=torch.bfloat16,
            shapes=shapes,
            rows=(1, 2, 4, 8),
            context=1024,
            runs=runs,
            cold_bytes=2**28,
        )

    @classmethod
    def tiny(cls) -> Setting:
        """All of it on a CPU, in seconds."""
        return cls(torch.device("cpu"), torch.float32, TINY, (1, 2), 20, 2, 2**15)

    @cached_property
    def ops(self) -> ModelOps:
        return model_ops(torch.empty(0, dtype=self.dtype, device=self.device), scheduled=True)

    @cached_property
    def cuda_ops(self) -> ModelOps | None:
        """As `ops`, but products of up to four rows by the CUDA library; None where there is none.

        `ops` itself follows RSD_DECODE_PROJECTION, as the engine does.
        """
        if self.device.type != "cuda" or cuda_library.load() is None:
            return None
        tensor = torch.empty(0, dtype=self.dtype, device=self.device)
        return model_ops(tensor, scheduled=True, decode_projection="cuda")

    def copies(self, num_bytes: int) -> int:
        """How many copies of data of this size a run reads."""
        return min(max(2, self.cold_bytes // max(1, num_bytes)), _MAX_COPIES)

    def normal(self, *shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
        """Normally distributed values; the same shape and seed give the same values."""
        generator = torch.Generator(self.device).manual_seed(seed + sum(shape))
        values = torch.empty(shape, dtype=self.dtype, device=self.device)
        return values.normal_(0, scale, generator=generator)
