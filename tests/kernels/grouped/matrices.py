"""Random matrices in few bits."""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind


def made(
    kind: ValueKind,
    num_outputs: int = 5,
    num_inputs: int = 320,
    group_size: int = 64,
    scale_rows: int = 1,
    *,
    zeros: bool = False,
    order: Tensor | None = None,
    seed: int = 0,
) -> tuple[GroupedMatrix, Tensor]:
    """A random matrix, and what it stands for in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape, groups = (num_outputs, num_inputs), num_inputs // group_size
    values = {
        ValueKind.INT4: torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8),
        ValueKind.INT8: torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8),
        ValueKind.FP8: torch.randn(shape, generator=generator).to(torch.float8_e4m3fn),
    }[kind]
    scales = torch.rand(-(-num_outputs // scale_rows), groups, generator=generator).half() / 16
    zero = torch.randint(0, 16, (num_outputs, groups), generator=generator, dtype=torch.int8)
    matrix = GroupedMatrix.pack(
        kind, values, scales, zero if zeros else None,
        group_size=group_size, scale_rows=scale_rows, order=order,
    )  # fmt: skip
    n, g = torch.arange(num_outputs), torch.arange(num_inputs) // group_size
    default = 8 if kind is ValueKind.INT4 else 0
    less = zero.double()[:, g] if zeros else default
    expected = scales.double()[n // scale_rows][:, g] * (values.double() - less)
    if order is not None:
        expected = torch.stack([expected[:, order == k].sum(1) for k in range(num_inputs)], 1)
    return matrix, expected
