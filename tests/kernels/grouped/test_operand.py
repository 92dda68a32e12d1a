"""Weights in few bits as operands: how products are cut, what is read ahead, the twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rsd_kernels import ahead
from rsd_kernels.ahead import next_weight_args
from rsd_kernels.cuda import decode_projection
from rsd_kernels.grouped.matrix import ValueKind
from rsd_kernels.grouped.operand import GroupedArgs, tiles_of, weight_args
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear import tiles, twin
from rsd_kernels.linear.weight import LinearWeight
from tests.kernels.grouped.matrices import made

MULTIPROCESSORS = 132
SHARED = 227 * 1024  # bytes of a multiprocessor of an H100
# outputs (pairs if gated), inputs, gated: of Qwen2.5 7B and 72B
PRODUCTS = [
    (2304, 3584, True), (3584, 3584, False), (18944, 3584, True), (3584, 18944, False),
    (5120, 8192, True), (8192, 8192, False), (29568, 8192, True), (8192, 29568, False),
]  # fmt: skip


def weight(
    kind: ValueKind, num_outputs: int = 4, num_inputs: int = 64, group_size: int = 32
) -> GroupedWeight:
    return GroupedWeight(made(kind, num_outputs, num_inputs, group_size)[0])


def large(kind: ValueKind, num_inputs: int, group_size: int = 128) -> Any:
    """One output stands for all: tiles do not look at them."""
    return weight(kind, 1, num_inputs, group_size)


@pytest.mark.parametrize("num_rows", [1, 9])
@pytest.mark.parametrize(("num_outputs", "num_inputs", "gated"), PRODUCTS)
def test_tiles(num_outputs: int, num_inputs: int, gated: bool, num_rows: int) -> None:
    """All programs are resident, with enough on its way and work for most multiprocessors."""
    for kind in (ValueKind.INT4, ValueKind.FP8):
        found = tiles_of(
            large(kind, num_inputs), num_rows, num_outputs,
            gated=gated, normed=gated, dtype=torch.bfloat16,
        )  # fmt: skip
        programs = found.programs(MULTIPROCESSORS)
        assert programs >= 0.8 * MULTIPROCESSORS
        at_once = -(-programs // MULTIPROCESSORS)
        assert at_once <= found.resident and 65536 // (128 * found.max_registers) >= found.resident
        rows_of_weight = found.block_n * (2 if gated else 1)
        assert rows_of_weight >= 32  # a tile of four warps
        values = rows_of_weight * 128  # a line of each
        step = values + found.rows * found.block_k * 2 * (2 if gated else 1)
        assert at_once * step * (found.num_stages - 1) <= SHARED
        assert programs * values * (found.num_stages - 1) >= min(
            tiles.FLIGHT_BYTES // 2, num_outputs * num_inputs * kind.bits // 8 // 2
        )


@pytest.mark.parametrize("num_rows", [1, 9])
def test_small_groups_with_a_norm_have_few_stages(num_rows: int) -> None:
    """To unpack them takes longer than to read them, and their scales take the registers."""
    for group_size in (32, 64):
        found = tiles_of(
            large(ValueKind.INT4, 3584, group_size), num_rows, 18944,
            gated=True, normed=True, dtype=torch.bfloat16,
        )  # fmt: skip
        assert found.num_stages == 4
        assert found.programs(MULTIPROCESSORS) >= MULTIPROCESSORS
    plain = tiles_of(
        large(ValueKind.INT4, 3584, 32), num_rows, 18944,
        gated=True, normed=False, dtype=torch.bfloat16,
    )  # fmt: skip
    assert plain.num_stages > 4


def test_few_rows_are_normed_as_8() -> None:
    one = weight(ValueKind.INT4)
    for normed, wanted in ((True, [8, 8, 8, 16, 16]), (False, [16] * 5)):
        found = [
            tiles_of(one, n, 4, gated=False, normed=normed, dtype=torch.float16).rows
            for n in (0, 1, 8, 9, 16)
        ]
        assert found == wanted


def test_plain_weights_are_passed_as_before() -> None:
    plain = LinearWeight(torch.empty(4, 64))
    assert weight_args(plain) == {"weight": plain.matrix, "stride_weight": 64, "FORMAT": None}
    found = tiles_of(plain, 3, 4, gated=False, normed=True, dtype=torch.float32)
    assert found == tiles.projection_tiles(3, 4, 64, gated=False, normed=True, dtype=torch.float32)


@pytest.mark.parametrize(
    ("kind", "num_inputs", "group_size", "sharing"),
    [
        (ValueKind.INT4, 512, 32, 1),
        (ValueKind.INT4, 512, 128, 4),
        (ValueKind.INT4, 576, 192, 2),
        (ValueKind.INT4, 1536, 512, 8),
        (ValueKind.INT4, 48, 48, 8),
        (ValueKind.FP8, 512, 64, 2),
        (ValueKind.FP8, 512, 128, 4),
        (ValueKind.INT8, 512, 128, 1),
    ],
)
def test_slices_that_share_a_scale(
    kind: ValueKind, num_inputs: int, group_size: int, sharing: int
) -> None:
    given = weight_args(GroupedWeight(made(kind, 2, num_inputs, group_size, zeros=False)[0]))
    assert isinstance(given["weight"], GroupedArgs)
    assert given["FORMAT"].sharing == sharing
    assert given["weight"].stride_scales == given["weight"].stride_zeros == 2


def test_a_weight_is_read_before_one_of_any_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    plain, few = LinearWeight(torch.empty(4, 64)), weight(ValueKind.INT4)
    assert plain.before(few.stored).next_matrix is few.matrix.values
    assert few.before(plain.stored).next_matrix is plain.matrix
    told = few.before(weight(ValueKind.FP8, 8, 128).stored)
    assert told.matrix is few.matrix and few.next_matrix is None
    args = next_weight_args(told)
    assert args["ahead"] is told.next_matrix and args["ahead_lines"] == 8
    assert next_weight_args(few) == {"ahead": few.matrix.values, "ahead_lines": 0}


def test_the_cuda_library_does_not_take_it() -> None:
    x = torch.zeros(1, 64)
    found = decode_projection.refusal(x, weight(ValueKind.FP8), None)
    assert found == "the weight is in fp8"


@pytest.mark.parametrize("kind", ValueKind)
def test_twins_expand_it(kind: ValueKind) -> None:
    matrix, expected = made(kind, 6, 64, 32, zeros=True)
    bias, norm, x = torch.randn(6), torch.rand(64), torch.randn(3, 64)
    plain = LinearWeight(expected, bias.double())
    few = GroupedWeight(matrix, bias)

    def by(given: Any, dtype: torch.dtype) -> torch.Tensor:
        x_, norm_ = x.to(dtype), norm.to(dtype)
        normed, gate_up, out = x_.new_empty(3, 64), x_.new_empty(3, 6), x_.new_empty(3, 3)
        twin.norm_gate_up(x_, norm_, 1e-5, given, normed=normed, gate_up=gate_up, out=out)
        return torch.cat((out, twin.linear(x_, given)), 1).double()

    torch.testing.assert_close(
        by(few, torch.float32), by(plain, torch.float64), rtol=1e-4, atol=1e-4
    )
