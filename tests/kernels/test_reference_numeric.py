"""The numeric twins against formulas written out in float64, with NaN wherever memory is stale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rsd_kernels.activation.twin import silu_mul
from rsd_kernels.attention.twin import attention_map, paged_attention
from rsd_kernels.linear import blas
from rsd_kernels.linear.blas import cpu_layout
from rsd_kernels.linear.twin import linear
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.twin import rms_norm
from rsd_kernels.rope.tables import rope_rows, rope_tables
from rsd_kernels.rope.twin import kv_write, rope
from rsd_kernels.state.rows import RowBatch

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(actual: Tensor, wanted: Tensor) -> None:
    """Within a few roundings of the dtype of `actual`, relative to the largest value."""
    assert actual.shape == wanted.shape
    error = (actual.double() - wanted.double()).abs().max()
    assert error <= 8 * torch.finfo(actual.dtype).eps * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 9, 16, 17])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linear(
    capability: str, num_rows: int, bias: bool, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of calling BLAS, with and without `out`, which may be the residual itself."""
    monkeypatch.setattr(blas, "_capability", lambda: capability)
    x, weight = torch.randn(num_rows, 24), torch.randn(10, 24)
    b = torch.randn(10) if bias else None
    r = torch.randn(num_rows, 10) if residual else None
    wanted = x.double() @ weight.double().T
    wanted = wanted + (b.double() if b is not None else 0) + (r.double() if r is not None else 0)
    given = LinearWeight(weight, b)
    torch.testing.assert_close(linear(x, given, residual=r).double(), wanted, rtol=0, atol=1e-5)
    out = torch.full((num_rows, 10), NAN) if r is None else r
    assert linear(x, given, residual=r, out=out) is out
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)


def test_linear_split_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 24), torch.randn(12, 24)
    monkeypatch.setattr(blas, "_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(linear(x, LinearWeight(weight)), x @ weight.T)


@pytest.mark.parametrize("num_rows", [3, 4, 8, 15, 16])
def test_linear_over_a_large_weight(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of 64 columns, and plainly where they do not come out even."""
    monkeypatch.setattr(blas, "_capability", lambda: "AVX512")
    x, weight = torch.randn(num_rows, 128), torch.randn(4097, 128)
    wanted = x.double() @ weight.double().T
    out = torch.full((num_rows, 4097), NAN)
    for columns in (4096, 4097):
        got = linear(x, LinearWeight(weight[:columns]), out=out[:, :columns])
        torch.testing.assert_close(got.double(), wanted[:, :columns], rtol=0, atol=1e-4)


def test_linear_layouts() -> None:
    small, odd = (10, 24), (9, 24)
    assert cpu_layout(1, small, 2, "AVX2") == "split"
    assert cpu_layout(1, odd, 2, "AVX2") == "plain"
    assert cpu_layout(1, small, 1, "AVX2") == "plain"
    assert cpu_layout(2, odd, 2, "AVX2") == cpu_layout(16, odd, 2, "AVX2") == "transposed"
    assert cpu_layout(17, small, 2, "AVX2") == cpu_layout(0, small, 2, "AVX2") == "plain"
    assert {cpu_layout(n, small, 2, "AVX512") for n in (1, 2, 8, 64)} == {"plain"}
    large = (4096, 128)
    assert {cpu_layout(n, large, 2, "AVX512") for n in (0, 1, 3, 16, 64)} == {"plain"}
    assert {cpu_layout(n, large, 2, "AVX512") for n in (4, 8, 15)} == {"batched"}
    assert cpu_layout(8, (4097, 128), 2, "AVX512") == "plain"
    assert cpu_layout(8, (4032, 128), 2, "AVX512") == "plain"
    assert cpu_layout(8, large, 2, "DEFAULT") == "plain"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 8), (0, 16)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype)
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    if x.numel():
        close(rms_norm(x, weight, 1e-3), wanted)
    out = torch.full_like(x, NAN)
    assert rms_norm(x, weight, 1e-3, out=out) is out
    assert torch.equal(out, rms_norm(x, weight, 1e-3))
    rms_norm(x, weight, 1e-3, out=x)
    assert torch.equal(out, x)


def test_rms_norm_sums_in_fp32() -> None:
    """1000² overflows fp16."""
    x = torch.full((1, 64), 1000.0, dtype=torch.float16)
    close(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-6), torch.ones(1, 64))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 14).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    close(silu_mul(gate_up), gate / (1 + torch.exp(-gate)) * up)
    out = torch.full((3, 7), NAN, dtype=dtype)
    assert silu_mul(gate_up, out=out) is out
    assert torch.equal(out, silu_mul(gate_up))


def strided_pages(num_pages: int, per_page: int, heads: int, width: int, dtype: torch.dtype):
    """K and V pages as the pool cuts them: planes inside larger pages, all NaN."""
    plane = per_page * heads * width
    stride = 3 * plane + 8
    buffer = torch.full((num_pages * stride,), NAN, dtype=dtype)
    shape, strides = (num_pages, per_page, heads, width), (stride, heads * width, width, 1)
    return (
        buffer,
        buffer.as_strided(shape, strides, 8),
        buffer.as_strided(shape, strides, plane + 8),
    )


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


def one_row(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention of one row in float64: q [heads, D], keys and values [L, kv_heads, D]."""
    out = []
    for head in range(q.shape[0]):
        kv_head = head // (q.shape[0] // keys.shape[1])
        scores = [math.exp(float(q[head] @ key[kv_head]) * scale) for key in keys]
        weighted = sum(s * value[kv_head] for s, value in zip(scores, values, strict=True))
        out.append(weighted / sum(scores))
    return torch.stack(out)


CASES = {
    "one decode row": [(1, 14)],
    "first token": [(1, 1)],
    "decode rows of unequal length": [(1, 14), (1, 1), (1, 9)],
    "decode rows of equal length": [(1, 10), (1, 10)],
    "fresh prompt": [(9, 9)],
    "chunk after history": [(4, 15)],
    "chunk on a page edge": [(5, 10)],
    "mixed": [(1, 7), (1, 15), (3, 12), (6, 6)],
    "decode rows apart": [(1, 7), (3, 12), (1, 11)],
    "a sequence without rows": [(1, 7), (0, 4), (2, 6)],
}


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("case", list(CASES))
def test_paged_attention(case: str, num_heads: int, num_kv_heads: int, window: int | None) -> None:
    """Rows are (new rows, tokens in all); every place that holds no token of them is NaN."""
    sizes, per_page, width, scale = CASES[case], 5, 8, 0.4
    _, k_pages, v_pages = strided_pages(16, per_page, num_kv_heads, width, torch.float32)
    table = torch.full((6, 4), 2**30, dtype=torch.int32)  # entries past the last page are garbage
    slots, pages = [4, 0, 5, 2], torch.randperm(16)[:12].view(4, 3).int()
    starts, keys, values = [0], [], []
    for s, (num_rows, kv_len) in enumerate(sizes):
        used = -(-kv_len // per_page)
        table[slots[s], :used] = pages[s, :used]
        k, v = torch.randn(2, kv_len, num_kv_heads, width)
        for j in range(kv_len):
            place = int(pages[s, j // per_page]), j % per_page
            k_pages[place], v_pages[place] = k[j], v[j]
        keys.append(k.double())
        values.append(v.double())
        starts.append(starts[-1] + num_rows)
    batch = RowBatch.allocate(starts[-1], len(sizes), torch.device("cpu"))
    batch.seq_slot.copy_(torch.tensor(slots[: len(sizes)]))
    batch.seq_start.copy_(torch.tensor(starts))
    batch.seq_kv_len.copy_(torch.tensor([kv_len for _, kv_len in sizes]))
    q = torch.randn(starts[-1], num_heads, width)
    out = torch.full_like(q, NAN)
    key_map = attention_map(batch, table, per_page, window, torch.float32)
    assert paged_attention(q, k_pages, v_pages, key_map, scale=scale, out=out) is out
    for s, (num_rows, kv_len) in enumerate(sizes):
        for i in range(num_rows):
            row, last = starts[s] + i, kv_len - num_rows + i
            seen = slice(0 if window is None else max(0, last + 1 - window), last + 1)
            wanted = one_row(q[row].double(), keys[s][seen], values[s][seen], scale)
            torch.testing.assert_close(out[row].double(), wanted, rtol=0, atol=2e-6)


def test_rows_of_no_sequence_are_left_alone() -> None:
    """A padded bucket: two rows, of which one belongs to a sequence."""
    _, k_pages, v_pages = strided_pages(1, 5, 1, 8, torch.float32)
    k_pages[0, 0], v_pages[0, 0] = 1.0, 2.0
    batch = RowBatch.allocate(2, 1, torch.device("cpu"))
    batch.seq_start.copy_(torch.tensor([0, 1]))
    batch.seq_kv_len.fill_(1)
    out = torch.full((2, 1, 8), 7.0)
    key_map = attention_map(batch, torch.zeros(1, 1).int(), 5, None, torch.float32)
    paged_attention(torch.randn(2, 1, 8), k_pages, v_pages, key_map, scale=1.0, out=out)
    assert torch.equal(out, torch.tensor([2.0, 7.0])[:, None, None].expand(2, 1, 8))
