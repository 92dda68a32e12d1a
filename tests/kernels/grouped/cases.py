"""Products with random matrices in few bits, by the kernels and by twins in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.grouped.matrix import ValueKind
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear import launchers
from rsd_kernels.linear import twin as linear_twin
from rsd_kernels.linear.weight import LinearWeight
from tests.kernels.grouped.matrices import made
from tests.kernels.harness.tensors import DEVICE, assert_close, nan, rows

EPS = 1e-5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One product.

    Attributes:
        fused: words of "bias", "norm", "residual", "gated", "gelu".
    """

    kind: ValueKind
    num_rows: int = 3
    num_outputs: int = 34
    num_inputs: int = 320
    group_size: int = 64
    scale_rows: int = 1
    zeros: bool = False
    order: bool = False
    fused: str = ""

    def operands(self, dtype: torch.dtype) -> dict[str, Any]:
        """x, the weight, and what it stands for; all but the matrix rounded to `dtype`."""
        generator = torch.Generator().manual_seed(self.num_rows)
        order = torch.randperm(self.num_inputs, generator=generator).int() if self.order else None
        matrix, plain = made(
            self.kind, self.num_outputs, self.num_inputs, self.group_size, self.scale_rows,
            zeros=self.zeros, order=order,
        )  # fmt: skip
        bias = (rows(1, self.num_outputs, 3)[0] / 8).to(dtype) if "bias" in self.fused else None
        return {
            "x": (rows(self.num_rows, self.num_inputs, 1) / 4).to(dtype),
            "norm": rows(1, self.num_inputs, 4)[0].to(dtype) if "norm" in self.fused else None,
            "residual": rows(self.num_rows, self.num_outputs, 5).to(dtype),
            "weight": GroupedWeight(matrix, bias),
            "plain": LinearWeight(plain, None if bias is None else bias.double()),
        }

    def run(self, module: Any, given: dict[str, Any], weight: Any, of: torch.dtype) -> Tensor:
        """The product by the launchers or the twins, in dtype `of`."""
        device = weight.stored.device
        x, residual = (given[name].to(device, of) for name in ("x", "residual"))
        norm = None if given["norm"] is None else given["norm"].to(device, of)
        num_rows, num_outputs = self.num_rows, self.num_outputs
        normed = nan(*x.shape, dtype=of, device=device)
        if "gated" in self.fused:
            gate_up = nan(num_rows, num_outputs, dtype=of, device=device)
            out = nan(num_rows, num_outputs // 2, dtype=of, device=device)
            return module.norm_gate_up(
                x, norm, EPS, weight, gelu="gelu" in self.fused, normed=normed, gate_up=gate_up,
                out=out,
            )  # fmt: skip
        out = nan(num_rows, num_outputs, dtype=of, device=device)
        if norm is not None:
            return module.norm_linear(x, norm, EPS, weight, normed=normed, out=out)
        if "residual" in self.fused:
            return module.linear(x, weight, residual=residual, out=residual)
        return module.linear(x, weight, out=out)


def on_device(weight: GroupedWeight) -> GroupedWeight:
    bias = None if weight.bias is None else weight.bias.to(DEVICE)
    return GroupedWeight(weight.matrix.to(DEVICE), bias)


def check(case: Case, dtype: torch.dtype) -> None:
    """The kernel's error is at most twice that of the twin in the same dtype."""
    given = case.operands(dtype)
    exact = case.run(linear_twin, given, given["plain"], torch.float64)
    plain = case.run(linear_twin, given, given["weight"], dtype)
    found = case.run(launchers, given, on_device(given["weight"]), dtype)
    assert_close(found.cpu(), plain, exact, num_terms=case.num_inputs + 4)
