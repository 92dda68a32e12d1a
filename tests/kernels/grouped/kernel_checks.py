"""Products with weights in few bits, in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_kernels.grouped import product
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind
from rsd_kernels.grouped.product import from_fp8, from_int4
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear import kernel as projection
from rsd_kernels.linear import launchers
from tests.kernels.grouped.cases import Case, check, on_device
from tests.kernels.grouped.matrices import made
from tests.kernels.harness.broken import broken
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE, DOT_DTYPES, rows
from tests.kernels.qkv import kernel_checks as qkv_checks

INT4, INT8, FP8 = ValueKind
CASES: dict[str, Case] = {
    "int4": Case(INT4),
    "int4, zeros and order": Case(INT4, 5, 34, 384, 128, zeros=True, order=True, fused="bias"),
    "int4, one group": Case(INT4, 1, 9, 48, 48, zeros=True, fused="norm"),
    "int4, small groups": Case(INT4, 16, 20, 288, 32, 4, fused="residual bias"),
    "int4, groups across lines": Case(INT4, 2, 8, 576, 192, zeros=True, fused="norm bias gated"),
    "int4, many rows": Case(INT4, 70, 20, 288, 96, zeros=True, fused="norm gated gelu bias"),
    "int8": Case(INT8, 4, 34, 256, 128, zeros=True, order=True, fused="norm gated"),
    "int8, one group": Case(INT8, 1, 10, 300, 300, fused="residual"),
    "int8, many rows": Case(INT8, 17, 10, 96, 32, fused="bias residual"),
    "fp8": Case(FP8, 1, 34, 384, 128, 4, fused="norm gated bias"),
    "fp8, one scale": Case(FP8, 16, 10, 200, 200, 10, fused="norm"),
    "fp8, many rows": Case(FP8, 20, 20, 256, 128, 16, fused="residual"),
}


@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_that_of_pytorch(name: str) -> None:
    for dtype in DOT_DTYPES:
        check(CASES[name], dtype)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("kind", ValueKind)
def test_values_are_exact(kind: ValueKind, dtype: torch.dtype) -> None:
    """All of them, as products with rows of the identity, which each pick one out."""
    count = 16 if kind is INT4 else 256
    values = torch.arange(count, dtype=torch.uint8).view(1, count)
    if kind is INT8:
        values = values.view(torch.int8)
    if kind is FP8:
        values[values & 0x7F == 0x7F] = 0  # NaN
        values = values.view(torch.float8_e4m3fn)
    matrix = GroupedMatrix.pack(kind, values, torch.ones(1, 1).half(), group_size=count)
    x = torch.eye(count, dtype=dtype, device=DEVICE)
    found = [launchers.linear(rows, on_device(GroupedWeight(matrix))) for rows in x.split(16)]
    assert torch.equal(torch.cat(found).cpu().float(), matrix.expand().t())


@triton.jit
def _fields_kernel(words: tl.tensor, out: tl.tensor, FP8: tl.constexpr) -> None:
    """[fields, 256] of 256 words: bits of bfloat16, but for a factor."""
    o = tl.arange(0, 256)
    b_w = tl.load(words + o)
    for i in tl.static_range(4 if FP8 else 8):
        b_q = from_fp8(b_w, i, tl.bfloat16) if FP8 else from_int4(b_w, i, tl.bfloat16)
        tl.store(out + i * 256 + o, b_q.to(tl.int16, bitcast=True))


def test_bits_of_bfloat16() -> None:
    """In which the interpreter cannot multiply."""
    generator = torch.Generator().manual_seed(0)
    for kind in (INT4, FP8):
        values = torch.randint(0, 16 if kind is INT4 else 127, (8, 1024), generator=generator)
        values = values[:, : 32 * len(kind.shifts)].to(torch.uint8)
        if kind is FP8:
            values = (values | torch.randint(0, 2, values.shape, generator=generator) << 7).byte()
        plain = values if kind is INT4 else values.view(torch.float8_e4m3fn)
        scales = torch.ones(8, 1)
        stored = GroupedMatrix.pack(kind, plain, scales, group_size=values.shape[1]).values
        out = torch.empty(len(kind.shifts), 256, dtype=torch.int16, device=DEVICE)
        _fields_kernel[(1,)](stored.contiguous().to(DEVICE), out, kind is FP8)
        power = 120 if kind is FP8 else 133
        found = torch.ldexp(out.cpu().view(torch.bfloat16).double(), torch.tensor(power)).float()
        wanted = plain.float().view(8, -1, 32).transpose(0, 1).flatten(1)  # by field
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ValueKind)
def test_a_row_has_the_same_bits_alone(kind: ValueKind) -> None:
    weight = on_device(GroupedWeight(made(kind, 34, 320, 64, zeros=kind is not FP8)[0]))
    x = rows(16, 320, 7).half().to(DEVICE)
    norm = rows(1, 320, 8)[0].half().to(DEVICE)

    def multiply(x: Tensor) -> Tensor:
        normed, gate_up = x.new_empty(x.shape), x.new_empty(len(x), 34)
        out = x.new_empty(len(x), 17)
        return launchers.norm_gate_up(
            x, norm, 1e-5, weight, normed=normed, gate_up=gate_up, out=out
        )

    whole = multiply(x)
    for first, count in ((0, 1), (5, 4), (15, 1)):
        assert torch.equal(multiply(x[first : first + count]), whole[first : first + count])


@pytest.mark.parametrize("num_programs", [1, 2])
def test_programs_may_compute_several_tiles(num_programs: int) -> None:
    """With the bits of programs that compute one."""
    weight = on_device(GroupedWeight(made(INT4, 132, 64, 32, zeros=True)[0]))
    x = rows(3, 64, 7).half().to(DEVICE)
    out = torch.empty(3, 66, dtype=torch.float16, device=DEVICE)
    launch = projection.projection_launch(x, weight, out=out, gated=True)
    num_tiles = -(-66 // launch.args["BLOCK_N"])
    assert launch.grid == (num_tiles,) and num_tiles > num_programs
    launch.run()
    found = out.clone()
    out.fill_(torch.nan)
    replace(launch, grid=(num_programs,), args=launch.args | {"PERSISTENT": True}).run()
    assert torch.equal(found, out) and bool(found.isfinite().all())


class QkvCase(qkv_checks.Case):
    """The fused launch with a weight in few bits, which stands for the same in every dtype."""

    kind = INT4

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        arguments = super().arguments(dtype, device)
        num_outputs = arguments["weight"].num_outputs
        zeros = self.kind is not FP8
        matrix, _ = made(self.kind, num_outputs, self.hidden, self.hidden // 2, zeros=zeros)
        bias = arguments["weight"].bias
        arguments["weight"] = GroupedWeight(matrix.to(device), bias)
        arguments["x"] /= 8
        return arguments


@pytest.mark.parametrize(
    "case",
    [
        QkvCase(num_rows=3, hidden=64),
        QkvCase(num_rows=9, hidden=320, bias=False, num_q_heads=1, num_kv_heads=1),
        QkvCase(num_rows=18, hidden=64, num_q_heads=2, num_kv_heads=1),
        QkvCase(num_rows=3, hidden=128, norm_first=False, head_dim=6),
    ],
    ids=str,
)
def test_qkv(case: QkvCase) -> None:
    qkv_checks.check(case, torch.float32)


def test_qkv_of_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (INT8, FP8):
        monkeypatch.setattr(QkvCase, "kind", kind)
        qkv_checks.check(QkvCase(num_rows=4, hidden=64), torch.float16)


@pytest.mark.skipif(not INTERPRETED, reason="reads out of bounds on purpose")
@pytest.mark.parametrize(
    ("right", "wrong", "name"),
    [
        ("4 * (I_SLICE // 2)", "4 * I_SLICE", "int4"),
        ("(i_group < NUM_INPUTS // FORMAT.group_size)", "(i_group < 99)", "int4"),
        ("i_group * weight.stride_zeros", "weight.stride_zeros", "int4, zeros and order"),
        ("weight.order + o_k", "weight.order + o_k // 2", "int4, zeros and order"),
        ("o_n // FORMAT.scale_rows", "o_n", "fp8"),
        ("b_q & -0x7FFF8000 | (b_q >> 1)", "(b_q >> 1)", "fp8, one scale"),
        (
            "tl.permute(tl.reshape(b_y, [ROWS, 2, BLOCK_N]), (0, 2, 1))",
            "tl.reshape(b_y, [ROWS, BLOCK_N, 2])",
            "int8",
        ),
        ("tl.sum(b_square, 1) / NUM_INPUTS", "tl.sum(b_square, 1) / BLOCK_K", "fp8"),
    ],
    ids=["field", "past the end", "zero", "order", "scale", "sign", "partner", "norm"],
)
def test_a_bug_is_caught(
    right: str, wrong: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.float16 if "one scale" in name else torch.float32
    wrong_product = broken(product, tmp_path, right, wrong)
    for function in ("grouped_product", "partners"):
        monkeypatch.setattr(projection, function, getattr(wrong_product, function))
    with pytest.raises(AssertionError):
        check(CASES[name], dtype)


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(2, 64, device=DEVICE)
    matrix = made(FP8, 4, 64, 32, zeros=True)[0].to(DEVICE)
    with pytest.raises(ValueError, match="the weight is in fp8 and has zeros; only integers may"):
        launchers.linear(x, GroupedWeight(matrix))
    order = torch.arange(64, dtype=torch.int64)
    matrix = made(INT4, 4, 64, 32, order=order)[0].to(DEVICE)
    with pytest.raises(ValueError, match="order has dtype torch.int64; allowed: torch.int32"):
        launchers.linear(x, GroupedWeight(matrix))
    good = made(INT4, 4, 64, 32)[0].to(DEVICE)
    for x_bad, bias, message in (
        (torch.zeros(2, 32), None, r"weight has shape \[4, 64\]; it must be \[4, 32\]"),
        (torch.zeros(2, 64), torch.zeros(3), r"bias has shape \[3\]; it must be \[4\]"),
        (torch.zeros(64), None, r"x has shape \[64\]; it must have 2 dimensions"),
    ):
        weight = GroupedWeight(good, None if bias is None else bias.to(DEVICE))
        out = torch.zeros(2, 4, device=DEVICE)
        with pytest.raises(ValueError, match=message):
            launchers.linear(x_bad.to(DEVICE), weight, out=out)
