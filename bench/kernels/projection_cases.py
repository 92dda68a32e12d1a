"""The matrix products of a decode step: alone, and with what is fused around them.

Alone (`x Wᵀ`), the Triton kernel, the CUDA C++ kernel and cuBLAS do the same work. A fused product
is one launch of either kernel, beside the same sums in PyTorch ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.kernels.early_launch import PRODUCT_VARIANTS, switched
from bench.kernels.gate import Errors, require_close
from bench.kernels.setting import Setting
from bench.lib.timing import Calls
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.cuda.decode_projection import MAX_ROWS
from rsd_kernels.linear import twin
from rsd_kernels.linear.tiles import projection_tiles
from rsd_kernels.linear.twin import linear as linear_twin
from rsd_kernels.linear.weight import LinearWeight

_EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One op in one shape: the contenders, and the gate that they must pass.

    Attributes:
        num_bytes: that one call reads and writes.
    """

    op: str
    num_rows: int
    num_bytes: int
    copies: int
    contenders: dict[str, Calls]
    gate: Callable[[], dict[str, Errors]]


@dataclass(frozen=True)
class Matrix:
    """One weight of a layer, in so many copies that no cache holds it."""

    name: str
    weights: Tensor  # [copies, N, K]
    bias: Tensor | None  # [N]

    @property
    def num_bytes(self) -> int:
        return self.weights[0].nbytes

    def weight(self, index: int) -> LinearWeight:
        return LinearWeight(self.weights[index], self.bias)


def matrices(setting: Setting, shape: DecoderShape) -> Iterator[Matrix]:
    """Yields every weight that a decode step reads, one at a time, since all may not fit."""
    qkv = (shape.num_q_heads + 2 * shape.num_kv_heads) * shape.head_dim
    sizes = {
        "qkv": (qkv, shape.hidden),
        "o": (shape.hidden, shape.num_q_heads * shape.head_dim),
        "gate_up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "lm_head": (shape.vocab, shape.hidden),
    }
    for name, (outputs, inputs) in sizes.items():
        copies = setting.copies(outputs * inputs * setting.dtype.itemsize)
        weights = setting.normal(copies, outputs, inputs, scale=inputs**-0.5)
        bias = setting.normal(outputs) if name == "qkv" and shape.qkv_bias else None
        yield Matrix(name, weights, bias)


def product_case(setting: Setting, matrix: Matrix, num_rows: int) -> Case:
    """x Wᵀ by every implementation."""
    weights = matrix.weights
    x = setting.normal(num_rows, weights.shape[2])
    out = x.new_empty(num_rows, weights.shape[1])
    plain = x.new_empty(out.shape)
    calls: dict[str, Callable[[int], object]] = {
        "ours": lambda i: setting.ops.linear(x, LinearWeight(weights[i]), out=out),
        "torch.mm": lambda i: torch.mm(x, weights[i].t(), out=plain),
    }
    num_outputs, num_inputs = weights.shape[1:]
    cut = projection_tiles(
        num_rows, num_outputs, num_inputs, gated=False, normed=False, dtype=x.dtype
    )
    if cut.persistent:
        name = "ours, a program a tile"
        calls[name] = switched(calls["ours"], early=False, constants=PRODUCT_VARIANTS[name])
    cuda_ops = setting.cuda_ops
    if num_rows <= MAX_ROWS and cuda_ops is not None:
        by_cuda = lambda i: cuda_ops.linear(x, LinearWeight(weights[i]), out=out)  # noqa: E731
        calls["cuda"] = switched(by_cuda, early=False)
        calls["cuda, overlapped"] = switched(by_cuda, early=True)

    def gate() -> dict[str, Errors]:
        exact = x.double() @ weights[0].double().t()
        calls["torch.mm"](0)
        errors = {}
        for name in calls.keys() - {"torch.mm"}:
            out.fill_(torch.nan)
            calls[name](0)
            what = f"{matrix.name}, {num_rows} rows, {name}"
            errors[name] = require_close(out, plain, exact, what, num_terms=x.shape[1])
        return errors

    return Case(
        op=matrix.name,
        num_rows=num_rows,
        num_bytes=matrix.num_bytes + x.nbytes + out.nbytes,
        copies=weights.shape[0],
        contenders={name: Calls(call) for name, call in calls.items()},
        gate=gate,
    )


def fused_case(setting: Setting, matrix: Matrix, num_rows: int) -> Case:
    """The product as a decoder launches it, fused, beside the same in PyTorch ops."""
    width, num_outputs = matrix.weights.shape[2], matrix.weights.shape[1]
    x = setting.normal(num_rows, width)
    norm = setting.normal(width, scale=0.1) + 1
    gated = matrix.name == "gate_up"
    out = torch.empty(
        num_rows,
        num_outputs // 2 if gated else num_outputs,
        dtype=torch.float32 if matrix.name == "lm_head" else x.dtype,
        device=x.device,
    )
    op = _Fused(matrix, x, norm, setting.normal(num_rows, num_outputs, seed=1))
    plain = torch.empty_like(out)
    ours = {"ours": setting.ops}
    if num_rows <= MAX_ROWS and setting.cuda_ops is not None:
        ours["cuda"] = setting.cuda_ops
    calls = {name: partial(op.run, ops, out=out) for name, ops in ours.items()}

    def gate() -> dict[str, Errors]:
        op.by_twin(0, plain)
        exact, errors = op.exact(), {}
        for name, call in calls.items():
            out.fill_(torch.nan)
            call(0)
            what = f"{op.name}, {num_rows} rows, {name}"
            errors[name] = require_close(out, plain, exact, what, num_terms=width)
        return errors

    return Case(
        op=op.name,
        num_rows=num_rows,
        num_bytes=matrix.num_bytes + x.nbytes + out.nbytes,
        copies=matrix.weights.shape[0],
        contenders={
            **{name: Calls(call) for name, call in calls.items()},
            "torch ops": Calls(lambda i: op.by_twin(i, plain)),
        },
        gate=gate,
    )


@dataclass(frozen=True)
class _Fused:
    matrix: Matrix
    x: Tensor  # [n, K]
    norm: Tensor  # [K]
    residual: Tensor  # [n, N]

    @property
    def name(self) -> str:
        names = {
            "qkv": "norm_linear (qkv)",
            "o": "linear + residual (o)",
            "gate_up": "norm_gate_up",
            "down": "linear + residual (down)",
            "lm_head": "lm_head (fp32 logits)",
        }
        return names[self.matrix.name]

    def run(self, ops: object, index: int, out: Tensor) -> None:
        """By `ops`, whose functions have the names and arguments of the twins."""
        weight, x = self.matrix.weight(index), self.x
        kind = self.matrix.name
        if kind == "qkv":
            normed = torch.empty_like(x)
            _get(ops, "norm_linear")(x, self.norm, _EPS, weight, normed=normed, out=out)
        elif kind == "gate_up":
            scratch = {"normed": torch.empty_like(x), "gate_up": x.new_empty(self.residual.shape)}
            _get(ops, "norm_gate_up")(x, self.norm, _EPS, weight, **scratch, out=out)
        elif kind == "lm_head":
            _get(ops, "lm_head")(x, weight, out=out)
        else:
            _get(ops, "linear")(x, weight, residual=self.residual, out=out)

    def by_twin(self, index: int, out: Tensor) -> None:
        self.run(_Twins, index, out)

    def exact(self) -> Tensor:
        """In float64, of the first copy."""
        matrix = Matrix(self.matrix.name, self.matrix.weights[:1].double(), _double(self.matrix))
        wide = _Fused(matrix, self.x.double(), self.norm.double(), self.residual.double())
        num_outputs = matrix.weights.shape[1] // (2 if matrix.name == "gate_up" else 1)
        out = wide.x.new_empty(self.x.shape[0], num_outputs)
        wide.by_twin(0, out)
        return out


class _Twins:
    norm_linear = twin.norm_linear
    norm_gate_up = twin.norm_gate_up
    linear = linear_twin

    @staticmethod
    def lm_head(x: Tensor, weight: LinearWeight, *, out: Tensor) -> None:
        out.copy_(linear_twin(x, weight))


def _get(ops: object, name: str) -> Callable[..., object]:
    function: Callable[..., object] = getattr(ops, name)
    return function


def _double(matrix: Matrix) -> Tensor | None:
    return None if matrix.bias is None else matrix.bias.double()
