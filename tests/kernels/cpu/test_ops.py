"""Every op of the CPU library against its twin, for every instruction set this machine has."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_kernels.activation.twin import gate_mul
from rsd_kernels.attention import twin as attention_twin
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.gumbel.twin import noise
from rsd_kernels.linear import twin as fused_twin
from rsd_kernels.linear.twin import linear as linear_twin
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.norm.twin import rms_norm
from rsd_kernels.philox.twin import DrawKey
from rsd_kernels.rope.tables import rope_tables
from rsd_kernels.rope.twin import rope_kv_write as rope_twin
from rsd_kernels.sample.twin import noisy_largest
from rsd_kernels.state.enums import Purpose
from rsd_kernels.state.rows import RowBatch
from tests.kernels.harness.isa import isa
from tests.kernels.harness.tensors import assert_close

__all__ = ["isa"]  # a fixture

NAN = float("nan")
EPS = 1e-5
# One tile, several, and groups of tiles; widths below, at and past a vector.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 19]
SHAPES = [(1, 1), (7, 5), (24, 16), (53, 37), (96, 64), (31, 200)]


pytestmark = pytest.mark.usefixtures("isa")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def double(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [0, *ROWS])
def test_linear(num_rows: int, shape: tuple[int, int]) -> None:
    weight, (num_outputs, width) = randn(*shape, seed=1), shape
    x = randn(num_rows, width + 3)[:, :width]  # rows apart
    for bias, residual in product(
        (None, randn(num_outputs, seed=2)), (None, randn(num_rows, num_outputs, seed=3))
    ):
        out = torch.full((num_rows, num_outputs + 2), NAN)
        given = LinearWeight(weight, bias)
        result = cpu_ops.linear(x, given, residual=residual, out=out[:, :num_outputs])
        wide = LinearWeight(weight.double(), None if bias is None else bias.double())
        added = None if residual is None else residual.double()
        exact = linear_twin(x.double(), wide, residual=added)
        plain = linear_twin(x, given, residual=residual)
        assert_close(result, plain, exact, num_terms=width)
        assert bool(out[:, num_outputs:].isnan().all()), "wrote past the outputs"


# The last two are wider than a panel that is widened to fp32 as a whole.
@pytest.mark.parametrize("shape", [*SHAPES, (61, 5000), (17, 13000)])
@pytest.mark.parametrize("num_rows", ROWS)
def test_bfloat16_weights_count_as_the_floats_they_stand_for(
    num_rows: int, shape: tuple[int, int]
) -> None:
    stored = randn(*shape, seed=1).bfloat16()
    x, bias = randn(num_rows, shape[1]), randn(shape[0], seed=2)
    narrow, wide = (LinearWeight(matrix, bias) for matrix in (stored, stored.float()))
    assert torch.equal(cpu_ops.linear(x, narrow), cpu_ops.linear(x, wide))


def test_bfloat16_weights_that_are_strided_go_to_the_twin() -> None:
    stored, x, norm = randn(14, 40).bfloat16()[:, ::2], randn(3, 20, seed=1), randn(20, seed=2)
    scratch: dict[str, Any] = {"normed": torch.empty(3, 20), "gate_up": torch.empty(3, 14)}

    def results(matrix: Tensor) -> list[Tensor]:
        weight = LinearWeight(matrix)
        normed = cpu_ops.norm_linear(
            x, norm, EPS, weight, normed=scratch["normed"], out=torch.empty(3, 14)
        )
        gated = cpu_ops.norm_gate_up(x, norm, EPS, weight, **scratch, out=torch.empty(3, 7))
        return [cpu_ops.linear(x, weight), normed, gated]

    for found, wanted in zip(results(stored), results(stored.float()), strict=True):
        torch.testing.assert_close(found, wanted)


def test_embed_widens_bfloat16() -> None:
    table, token = randn(9, 5).bfloat16(), torch.tensor([8, 0, 3], dtype=torch.int32)
    for given in (table, table.float()):
        assert torch.equal(
            cpu_ops.embed(given, token, out=torch.full((3, 5), NAN)), table[[8, 0, 3]].float()
        )
        scaled = cpu_ops.embed(given, token, scale=2.5, out=torch.full((3, 5), NAN))
        assert torch.equal(scaled, table[[8, 0, 3]].float() * 2.5)


def test_linear_adds_to_its_own_output() -> None:
    x, weight, out = randn(5, 40), LinearWeight(randn(33, 40, seed=1)), randn(5, 33, seed=2)
    wanted = linear_twin(x, weight, residual=out)
    assert cpu_ops.linear(x, weight, residual=out, out=out) is out
    assert torch.allclose(out, wanted, atol=1e-5)


def test_a_rows_result_does_not_depend_on_the_others() -> None:
    x, norm, weight = randn(40, 147), randn(147, seed=2), LinearWeight(randn(2 * 61, 147, seed=1))

    def products(rows: Tensor) -> tuple[Tensor, Tensor]:
        scratch: dict[str, Any] = {
            "normed": torch.empty_like(rows),
            "gate_up": torch.empty(len(rows), 122),
        }
        gated = cpu_ops.norm_gate_up(
            rows, norm, EPS, weight, **scratch, out=torch.empty(len(rows), 61)
        )
        return cpu_ops.linear(rows, weight), gated

    whole = products(x)
    for first, last in ((0, 1), (3, 5), (7, 10), (11, 17), (20, 39)):
        for part, all_rows in zip(products(x[first:last]), whole, strict=True):
            assert torch.equal(part, all_rows[first:last])


def test_the_number_of_threads_changes_nothing() -> None:
    x, weight = randn(9, 700), LinearWeight(randn(611, 700, seed=1))  # enough work for several
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(cpu_ops.linear(x, weight))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [0, 1, 3, 11])
def test_norms(num_rows: int, shape: tuple[int, int]) -> None:
    (num_outputs, width), scale = shape, torch.tensor(10.0)
    x, norm, weight = randn(num_rows, width) * scale, randn(width, seed=1), randn(*shape, seed=2)
    bias, normed = randn(num_outputs, seed=3), torch.full((num_rows, width), NAN)
    out = torch.full((num_rows, num_outputs), NAN)
    cpu_ops.norm_linear(x, norm, EPS, LinearWeight(weight, bias), normed=normed, out=out)

    def twin(*tensors: Tensor) -> Tensor:
        x, norm, weight, bias = tensors
        scratch = torch.empty_like(x)
        made = x.new_empty(num_rows, num_outputs)
        given = LinearWeight(weight, bias)
        return fused_twin.norm_linear(x, norm, EPS, given, normed=scratch, out=made)

    plain, exact = twin(x, norm, weight, bias), twin(*double(x, norm, weight, bias))
    assert_close(out, plain, exact, num_terms=width)
    wide_x, wide_norm = double(x, norm)
    exact = rms_norm(wide_x, wide_norm, EPS)
    assert_close(normed, rms_norm(x, norm, EPS), exact, num_terms=width)


@pytest.mark.parametrize(("num_outputs", "width"), [(1, 3), (48, 32), (61, 50)])
@pytest.mark.parametrize("num_rows", [0, 1, 4, 13])
def test_norm_gate_up(num_rows: int, num_outputs: int, width: int) -> None:
    x, norm = randn(num_rows, width), randn(width, seed=1)
    weight, bias = randn(2 * num_outputs, width, seed=2) * 3, randn(2 * num_outputs, seed=3)

    def run(op: Any, *tensors: Tensor) -> Tensor:
        x, norm, weight, bias = tensors
        scratch: dict[str, Any] = {
            "normed": torch.full_like(x, NAN),
            "gate_up": x.new_full((num_rows, 2 * num_outputs), NAN),
        }
        out = x.new_full((num_rows, num_outputs), NAN)
        return op(x, norm, EPS, LinearWeight(weight, bias), **scratch, out=out)

    plain = run(fused_twin.norm_gate_up, x, norm, weight, bias)
    exact = run(fused_twin.norm_gate_up, *double(x, norm, weight, bias))
    assert_close(
        run(cpu_ops.norm_gate_up, x, norm, weight, bias), plain, exact, num_terms=4 * width
    )


def test_gelu_and_no_norm() -> None:
    x, matrix, bias = randn(3, 20), randn(14, 20, seed=1), randn(14, seed=2)
    weight, wanted = LinearWeight(matrix, bias), gate_mul(x @ matrix.T + bias, gelu=True)
    scratch: dict[str, Any] = {"normed": torch.empty(3, 20), "gate_up": torch.empty(3, 14)}
    out = cpu_ops.norm_gate_up(x, None, EPS, weight, gelu=True, **scratch, out=torch.empty(3, 7))
    torch.testing.assert_close(out, wanted)


def test_silu_of_every_size() -> None:
    """Gates from far below to far above where e^-x fits a float; NaN stays NaN."""
    gate = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([-3e38, 3e38, NAN])])[None]
    width = gate.shape[1]
    weight = torch.zeros(2 * width, 2)
    weight[:width, 0], weight[width:, 1] = gate, 1.0
    scratch: dict[str, Any] = {"normed": torch.empty(1, 2), "gate_up": torch.empty(1, 2 * width)}
    out = torch.empty(1, width)
    x, given = torch.ones(1, 2), LinearWeight(weight)
    cpu_ops.norm_gate_up(x, torch.ones(2), 0.0, given, **scratch, out=out)
    assert bool(out[0, -1].isnan())
    exact = torch.nn.functional.silu(gate.double())
    assert torch.allclose(out[0, :-1].double(), exact[0, :-1], rtol=1e-6, atol=1e-30)


def test_rows_norm() -> None:
    x, norm = randn(9, 37), randn(37, seed=1)
    end = torch.tensor([3, 0, 4, 9], dtype=torch.int32)
    out = torch.full((4, 37), NAN)
    cpu_ops.rows_norm(x, end, norm, EPS, out=out)
    assert torch.allclose(out[[0, 2, 3]], rms_norm(x[[2, 3, 8]], norm, EPS), atol=1e-6)


@dataclass
class Heads:
    """Shapes of an attention, and its pages: strided, scattered, full of NaN."""

    num_q_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 16
    tokens_per_page: int = 3
    num_slots: int = 4
    pages_per_slot: int = 60
    memory: Tensor = field(init=False)
    k: Tensor = field(init=False)
    v: Tensor = field(init=False)
    table: Tensor = field(init=False)  # [num_slots, pages_per_slot] of a wider table

    def __post_init__(self) -> None:
        num_pages = self.num_slots * self.pages_per_slot
        shape = (num_pages, 2, self.tokens_per_page + 1, self.num_kv_heads, self.head_dim)
        self.memory = torch.full(shape, NAN)
        self.k = self.memory[:, 0, : self.tokens_per_page]
        self.v = self.memory[:, 1, : self.tokens_per_page]
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(2)).int()
        wide = torch.full((self.num_slots, self.pages_per_slot + 2), -7, dtype=torch.int32)
        wide[:, :-2] = order.view(self.num_slots, -1)
        self.table = wide[:, :-2]

    def fill(self, slot: int, length: int) -> None:
        for token in range(length):
            page = self.table[slot, token // self.tokens_per_page]
            for seed, pages in enumerate((self.k, self.v)):
                value = randn(self.num_kv_heads, self.head_dim, seed=1000 * slot + 2 * token + seed)
                pages[page, token % self.tokens_per_page] = value


def sequences(*chunks: tuple[int, int, int], padding: int = 0) -> RowBatch:
    """Chunks are (slot, rows, tokens of the sequence with them)."""
    sizes = [rows for _, rows, _ in chunks]
    batch = RowBatch.allocate(sum(sizes) + padding, len(chunks), torch.device("cpu"))
    batch.seq_start.copy_(torch.tensor([0, *accumulate(sizes)]))
    batch.seq_slot.copy_(torch.tensor([slot for slot, _, _ in chunks]))
    batch.seq_kv_len.copy_(torch.tensor([kv_len for _, _, kv_len in chunks]))
    return batch


def attend(op: Any, heads: Heads, q: Tensor, batch: RowBatch, window: int | None) -> Tensor:
    if op is cpu_ops.paged_attention:
        keys = AttentionMap(batch, heads.table, heads.tokens_per_page, window, ())
    else:
        keys = attention_twin.attention_map(
            batch, heads.table, heads.tokens_per_page, window, q.dtype
        )
    k, v = heads.k.to(q.dtype), heads.v.to(q.dtype)
    if q.dtype == torch.float32:
        k, v = heads.k, heads.v
    return op(q, k, v, keys, scale=heads.head_dim**-0.5, out=torch.full_like(q, NAN))


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(
    ("num_q_heads", "num_kv_heads", "head_dim"),
    [(6, 2, 16), (4, 4, 12), (9, 3, 64), (8, 1, 80), (2, 2, 256), (14, 2, 2)],
)
def test_paged_attention(
    num_q_heads: int, num_kv_heads: int, head_dim: int, window: int | None
) -> None:
    """Decode rows, chunks, a sequence without rows, padding; lengths below and past a block."""
    heads = Heads(num_q_heads, num_kv_heads, head_dim)
    lengths = (150, 64, 7, 65)
    for slot, length in enumerate(lengths):
        heads.fill(slot, length)
    batch = sequences((1, 1, 64), (0, 1, 150), (2, 7, 7), (2, 0, 0), (3, 20, 65), padding=3)
    q = randn(batch.num_rows, num_q_heads, head_dim)
    out = attend(cpu_ops.paged_attention, heads, q, batch, window)
    plain = attend(attention_twin.paged_attention, heads, q, batch, window)
    exact = attend(attention_twin.paged_attention, heads, q.double(), batch, window)
    rows = slice(batch.num_rows - 3)
    assert_close(out[rows], plain[rows], exact[rows], num_terms=300)
    assert bool(out[-3:].isnan().all()), "wrote rows of no sequence"


@pytest.mark.parametrize("window", [None, 9])
def test_attention_of_a_row_does_not_depend_on_its_chunk(window: int | None) -> None:
    heads = Heads(9, 3, 20)
    heads.fill(0, 140)
    heads.fill(1, 30)
    q = randn(140, 9, 20)
    whole = attend(cpu_ops.paged_attention, heads, q, sequences((0, 140, 140)), window)
    for first, last in ((0, 1), (63, 64), (64, 65), (60, 70), (139, 140)):
        batch = sequences((1, 2, 30), (0, last - first, last))
        rows = torch.cat((q[:2], q[first:last]))
        part = attend(cpu_ops.paged_attention, heads, rows, batch, window)
        assert torch.equal(part[2:], whole[first:last])


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("head_dim", [2, 12, 16, 64, 128])
def test_rope_kv_write(head_dim: int, with_norm: bool) -> None:
    heads, num_rows = Heads(3, 2, head_dim), 5
    qkv, other = randn(num_rows, 7, head_dim), Heads(3, 2, head_dim)
    cos, sin = rope_tables(100.0 ** (-torch.arange(head_dim // 2) / head_dim), 50)
    page = torch.tensor([4, -1, 0, 239, 7], dtype=torch.int32)
    offset = torch.tensor([2, 0, 1, 0, 2], dtype=torch.int32)
    position = torch.tensor([0, 49, 3, 17, 4], dtype=torch.int32)
    norms: dict[str, Any] = {}
    if with_norm:
        norms = {"q_norm": randn(head_dim, seed=1), "k_norm": randn(head_dim, seed=2), "eps": EPS}
    twin_qkv = qkv.clone()
    for op, rows, kv in ((cpu_ops.rope_kv_write, qkv, heads), (rope_twin, twin_qkv, other)):
        op(rows, kv.k, kv.v, page, offset, cos, sin, position=position, **norms)
    assert torch.allclose(qkv[:, :3], twin_qkv[:, :3], atol=1e-5)
    assert torch.equal(heads.memory.isnan(), other.memory.isnan()), "wrote elsewhere"
    assert torch.allclose(heads.memory, other.memory, atol=1e-5, equal_nan=True)


def test_rope_takes_rows_of_angles_too() -> None:
    heads, other = Heads(), Heads()
    qkv, cos, sin = randn(2, 10, 16), randn(2, 16, seed=1), randn(2, 16, seed=2)
    place, copy = torch.tensor([1, 2], dtype=torch.int32), qkv.clone()
    cpu_ops.rope_kv_write(qkv, heads.k, heads.v, place, place, cos, sin)
    rope_twin(copy, other.k, other.v, place, place, cos, sin)
    assert torch.allclose(heads.memory, other.memory, atol=1e-5, equal_nan=True)


def test_pages_far_apart(tmp_path: Path) -> None:
    """Offsets need more than 32 bits. The file is sparse: only what is written takes room."""
    stride = 1 << 30
    memory = torch.from_numpy(np.memmap(tmp_path / "pages", np.float32, "w+", shape=(3 * stride,)))
    pages = memory.as_strided((3, 2, 1, 8), (stride, 8, 8, 1))
    qkv, table = randn(2, 3, 8), torch.tensor([[2]], dtype=torch.int32)
    cos, sin = torch.ones(2, 8), torch.zeros(2, 8)
    page = torch.tensor([2, 2], dtype=torch.int32)
    offset = torch.tensor([0, 1], dtype=torch.int32)
    cpu_ops.rope_kv_write(qkv, pages, pages, page, offset, cos, sin)
    assert torch.equal(pages[2, :, 0], qkv[:, 2])
    keys = AttentionMap(sequences((0, 1, 1)), table, 2, None, ())
    q = qkv[:1, :1].contiguous()
    out = cpu_ops.paged_attention(q, pages, pages, keys, scale=1.0, out=torch.empty_like(q))
    assert torch.equal(out[0, 0], qkv[0, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_kv_len": [8]}, "a sequence has rows that its length does not cover"),
        ({"seq_slot": [4]}, "a sequence has rows that its length does not cover"),
        ({"seq_start": [0, 12]}, "a sequence has rows that its length does not cover"),
        ({"seq_kv_len": [181]}, "a page or an offset is not in the pool"),
    ],
)
def test_attention_refuses(change: dict[str, list[int]], message: str) -> None:
    heads, batch = Heads(), sequences((0, 9, 30))
    for name, values in change.items():
        getattr(batch, name).copy_(torch.tensor(values))
    with pytest.raises(ValueError, match=message):
        attend(cpu_ops.paged_attention, heads, randn(9, 6, 16), batch, None)
    heads.table[0, 4] = 240
    with pytest.raises(ValueError, match="a page or an offset is not in the pool"):
        attend(cpu_ops.paged_attention, heads, randn(9, 6, 16), sequences((0, 9, 30)), None)


@pytest.mark.parametrize(
    ("name", "value"), [("page", 240), ("offset", 3), ("offset", -1), ("position", 50)]
)
def test_rope_kv_write_refuses(name: str, value: int) -> None:
    heads = Heads()
    place = {key: torch.zeros(1, dtype=torch.int32) for key in ("page", "offset", "position")}
    place[name][0] = value
    cos, sin = rope_tables(torch.ones(8), 50)
    with pytest.raises(ValueError, match="rope_kv_write: "):
        cpu_ops.rope_kv_write(
            randn(1, 10, 16), heads.k, heads.v, place["page"], place["offset"], cos, sin,
            position=place["position"],
        )  # fmt: skip
    assert bool(heads.memory.isnan().all())


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has shape \[2, 3\]; its rows must be 5 wide"):
        cpu_ops.linear(torch.ones(2, 3), LinearWeight(torch.ones(4, 5)))
    with pytest.raises(ValueError, match="out has shape"):
        cpu_ops.linear(torch.ones(2, 3), LinearWeight(torch.ones(4, 3)), out=torch.ones(2, 3))


def test_what_the_library_cannot_take_goes_to_the_twins() -> None:
    x, weight = randn(6, 4).t(), LinearWeight(randn(5, 6, seed=1))
    assert torch.equal(cpu_ops.linear(x, weight), linear_twin(x, weight))
    half = weight.to(torch.half)
    assert torch.equal(cpu_ops.linear(x.half(), half), linear_twin(x.half(), half))
    heads = Heads(2, 1, 320)
    heads.fill(0, 4)
    q, batch = randn(2, 2, 320), sequences((0, 2, 4))
    out = attend(cpu_ops.paged_attention, heads, q, batch, None)
    assert torch.equal(out, attend(attention_twin.paged_attention, heads, q, batch, None))


def test_noise_has_the_bits_of_the_twin() -> None:
    """An id that is alone: the sum is its noise."""
    key = DrawKey(-(2**50) + 7, 2, 3, 2**31 - 1, Purpose.TARGET_TOKEN)
    scores, token, best = torch.full((3001,), -torch.inf), ctypes.c_int64(), ctypes.c_float()
    given = cpu_library.Draw(
        ctypes.addressof(token), ctypes.addressof(best), scores.data_ptr(), len(scores),
        key.seed % 2**64, key.sample, key.num_steps, key.position, key.purpose,
    )  # fmt: skip
    library = cpu_library.load()
    assert library is not None
    wanted, found = noise(key, np.arange(len(scores))), []
    for i in range(len(scores)):
        scores[i] = 0.0
        library.draw(given)
        assert token.value == i
        found.append(best.value)
        scores[i] = -torch.inf
    assert found == wanted.tolist()
    library.draw(given)
    assert token.value == -1, "no id was left"


@pytest.mark.parametrize("count", [1, 2, 15, 16, 63, 64, 65, 129, 5000])
def test_draw(count: int) -> None:
    """Flat and steep scores, with and without ids that are out: the token of the twin."""
    for i in range(40):
        key = DrawKey(i, i % 3, i % 7, i * 1001, Purpose(i % 2))
        scores = randn(count, seed=i) * (0.0, 1e-3, 1.0, 30.0)[i % 4]
        scores[randn(count, seed=i + 99) < (-9.0, 1.0)[i // 4 % 2]] = -torch.inf
        scores[i % count] = max(float(scores.max()), 0.0)
        scores -= scores.max()
        assert cpu_ops.draw(scores, key) == noisy_largest(scores, key)
