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
    """A random matrix, and its values in float64 computed element by element."""
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
    expected = torch.zeros(shape, dtype=torch.float64)
    plain = values.double()
    for n in range(num_outputs):
        for k in range(num_inputs):
            g = k // group_size
            default = 8 if kind is ValueKind.INT4 else 0
            offset = int(zero[n, g]) if zeros else default
            value = float(scales[n // scale_rows, g]) * (float(plain[n, k]) - offset)
            expected[n, k if order is None else int(order[k])] = value
    return matrix, expected
