"""The twins of rope and KV write: turned numbers, and nothing else written."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.rope.tables import rope_rows, rope_tables
from rsd_kernels.rope.twin import kv_write, rope
from tests.kernels.harness.tensors import strided_pages

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope(dtype: torch.dtype) -> None:
    """Each pair (i, i + half) is a complex number turned by position * inv_freq[i]."""
    inv_freq = 1.0 / 100 ** (torch.arange(4) / 4)
    position = torch.tensor([0, 3, 17, 5], dtype=torch.int32)
    cos, sin = rope_rows(*rope_tables(inv_freq, 20, scale=1.5), position)
    buffer = torch.randn(4, 5, 8).to(dtype)
    x, rest = buffer[:, 1:4], buffer[:, 4].clone()
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    angle = position.double()[:, None, None] * inv_freq.double()
    turned = pairs * torch.polar(torch.full_like(angle, 1.5), angle)
    rope(x, cos, sin)
    wanted = torch.cat((turned.real, turned.imag), -1)
    error = (buffer[:, 1:4].double() - wanted).abs().max()
    assert error < max(2e-5, 4 * torch.finfo(dtype).eps)
    assert torch.equal(buffer[:, 4], rest)


def test_kv_write() -> None:
    buffer, k_pages, v_pages = strided_pages(4, 3, 2, 8, torch.float32)
    k, v = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    page = torch.tensor([3, 0, -1, 3], dtype=torch.int32)
    offset = torch.tensor([2, 1, 0, 0], dtype=torch.int32)
    kv_write(k, v, k_pages, v_pages, page, offset)
    for row in (0, 1, 3):
        assert torch.equal(k_pages[page[row], offset[row]], k[row])
        assert torch.equal(v_pages[page[row], offset[row]], v[row])
    assert int(buffer.isfinite().sum()) == 2 * 3 * 16  # nothing else was touched
