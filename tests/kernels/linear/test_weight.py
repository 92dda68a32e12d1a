"""The weight of a product: what it allocates, and that its parts are views of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from rsd_kernels.linear.twin import linear
from rsd_kernels.linear.weight import LinearWeight

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [torch.arange(6.0), None])
def test_parts_are_views(bias: Tensor | None) -> None:
    weight = LinearWeight(torch.randn(6, 4), bias)
    x = torch.randn(2, 4)
    whole = linear(x, weight)
    parts = weight.split(1, 3, 2)
    assert [part.num_outputs for part in parts] == [1, 3, 2]
    torch.testing.assert_close(torch.cat([linear(x, part) for part in parts], 1), whole)
    torch.testing.assert_close(linear(x, weight.narrow(2, 3)), whole[:, 2:5])
    for part in parts:
        part.matrix.zero_()
        if part.bias is not None:
            part.bias.zero_()
    assert bool((linear(x, weight) == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_allocate(dtype: torch.dtype) -> None:
    allocate = partial(LinearWeight.allocate, dtype=dtype, device=CPU)
    weight = allocate(6, 4, bias=True)
    assert (weight.num_outputs, weight.num_inputs) == (6, 4)
    assert weight.dtype == weight.matrix.dtype == dtype
    assert weight.bias is not None and weight.bias.dtype == dtype
    assert weight.nbytes == (24 + 6) * dtype.itemsize
    plain = allocate(6, 4)
    assert plain.bias is None and plain.nbytes == weight.nbytes - 6 * dtype.itemsize


def test_another_dtype_is_that_of_the_matrix() -> None:
    weight = LinearWeight(torch.randn(3, 2).bfloat16(), torch.randn(3))
    wide = weight.to(torch.float32)
    assert torch.equal(wide.matrix, weight.matrix.float()) and wide.bias is weight.bias


def test_a_weight_knows_what_is_read_after_it() -> None:
    first, second = (LinearWeight(torch.randn(2, 4), torch.randn(2)) for _ in range(2))
    told = first.before(second.stored)
    assert told.matrix is first.matrix and told.bias is first.bias
    assert told.next_matrix is second.matrix and first.next_matrix is None
    assert told.nbytes == first.nbytes
    assert told.narrow(0, 1).next_matrix is None  # a part is not read by itself
