"""Rope and KV write in Triton against their twin. Run by `test_kernel.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels.rope.kernel import rope_kv_write
from rsd_kernels.rope.tables import rope_tables
from rsd_kernels.rope.twin import rope_kv_write as twin
from tests.kernels.harness.tensors import DEVICE, DTYPES, assert_close, far_pages

NUM_PAGES, PER_PAGE, NUM_POSITIONS = 7, 3, 50


@dataclass
class Case:
    """Rows of one merged buffer, to be stored in pages of NaN; the last row is padding."""

    num_rows: int = 5
    num_q_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    norm: bool = False
    tables: bool = True  # angles by position, else a row of angles for every row
    dtype: torch.dtype = torch.float32
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.head_dim)
        heads, size = self.num_q_heads + 2 * self.num_kv_heads, self.head_dim
        self.qkv = torch.randn(self.num_rows, heads, size, generator=generator).to(self.dtype)
        places = torch.randperm(NUM_PAGES * PER_PAGE, generator=generator)[: self.num_rows].int()
        page, offset = places // PER_PAGE, places % PER_PAGE
        page[-1:] = -1
        position = torch.randint(NUM_POSITIONS, (self.num_rows,), generator=generator).int()
        position[-1:] = 1 << 30
        inv_freq = 100.0 ** -torch.linspace(0, 1, size // 2)
        cos, sin = rope_tables(inv_freq, NUM_POSITIONS, 1.25)
        if not self.tables:
            row = position.clamp(max=NUM_POSITIONS - 1).long()
            cos, sin = cos[row], sin[row]
        self.tensors = {"page": page, "offset": offset, "cos": cos, "sin": sin}
        if self.tables:
            self.tensors["position"] = position
        if self.norm:
            weights = torch.randn(2, size, generator=generator).to(self.dtype)
            self.tensors |= {"q_norm": weights[0], "k_norm": weights[1]}

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Fresh tensors for one call, with K and V of a page side by side."""
        qkv = self.qkv.to(device, dtype, copy=True)
        shape = (NUM_PAGES, 5, PER_PAGE, self.num_kv_heads, self.head_dim)
        pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
        kept = {
            name: tensor.to(device, dtype if name.endswith("norm") else tensor.dtype)
            for name, tensor in self.tensors.items()
        }
        return kept | {"qkv": qkv, "k_pages": pages[:, 1], "v_pages": pages[:, 3], "eps": 1e-6}

    def by_twin(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        arguments = self.arguments(dtype, torch.device("cpu"))
        if self.tables:  # the twin gathers the angles of padding too
            arguments["position"].clamp_(max=NUM_POSITIONS - 1)
        twin(**arguments)
        return self.results(arguments)

    def results(self, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """q of all rows but padding, and the two planes of the pages as they lie in memory."""
        pages = torch.stack((arguments["k_pages"], arguments["v_pages"]))
        return arguments["qkv"][:-1, : self.num_q_heads].cpu(), pages.cpu()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row": {"num_rows": 2},
    "only padding": {"num_rows": 1},
    "no rows": {"num_rows": 0},
    "norm": {"norm": True},
    "gathered angles": {"tables": False},
    "head of 80": {"head_dim": 80, "norm": True},
    "head of 96": {"head_dim": 96},
    "head of 128": {"head_dim": 128, "norm": True},
    "head of 256": {"head_dim": 256},
    "as many K/V heads": {"num_q_heads": 3, "num_kv_heads": 3},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_that_of_pytorch(name: str, dtype: torch.dtype) -> None:
    case = Case(**CASES[name], dtype=dtype)
    arguments = case.arguments(dtype, DEVICE)
    before = arguments["qkv"][-1:].clone()
    rope_kv_write(**arguments)
    assert torch.equal(arguments["qkv"][-1:], before), "padding was changed"
    q, pages = case.results(arguments)
    (exact_q, exact_pages), (plain_q, plain_pages) = (
        case.by_twin(torch.float64),
        case.by_twin(dtype),
    )
    assert_close(q, plain_q, exact_q, num_terms=case.head_dim)
    written = exact_pages.isfinite()
    assert torch.equal(pages.isfinite(), written), "wrote to the wrong place"
    assert int(written.sum()) == max(0, case.num_rows - 1) * 2 * case.num_kv_heads * case.head_dim
    assert_close(
        pages[written], plain_pages[written], exact_pages[written], num_terms=case.head_dim
    )
    assert torch.equal(pages[1][written[1]], plain_pages[1][written[1]]), "v is stored as it is"


def test_pages_may_lie_far_apart(tmp_path: Path) -> None:
    case = Case(num_rows=4, head_dim=16, dtype=torch.float16)
    arguments = case.arguments(torch.float16, DEVICE)
    pages = far_pages(tmp_path, 3, (2, PER_PAGE, case.num_kv_heads, 16))
    arguments |= {"k_pages": pages[:, 0], "v_pages": pages[:, 1]}
    arguments["page"].copy_(torch.tensor([2, 0, 2, -1]))
    arguments["offset"].copy_(torch.tensor([1, 1, 0, 0]))
    rope_kv_write(**arguments)
    v = case.qkv[:, case.num_q_heads + case.num_kv_heads :].to(DEVICE)
    assert torch.equal(pages[2, 1, 1], v[0])
    assert torch.equal(pages[0, 1, 1], v[1])
    assert torch.equal(pages[2, 1, 0], v[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qkv": torch.zeros(5, 10, 63)},
            r"qkv has shape \[5, 10, 63\]; it must be \[N, heads, an",
        ),
        ({"qkv": torch.zeros(5, 4, 64)}, "qkv has 4 heads; it must have more than two for each of"),
        ({"qkv": torch.zeros(5, 10, 64).double()}, "qkv has dtype torch.float64; allowed: "),
        ({"v_pages": torch.zeros(7, 3, 2, 64).half()}, "v_pages has dtype torch.float16; allowed"),
        ({"k_pages": torch.zeros(7, 3, 64)}, r"k_pages has shape \[7, 3, 64\]; it must have 4 dim"),
        ({"k_pages": torch.zeros(7, 3, 64, 2).mT}, r"k_pages has strides \(.*\); its last dimens"),
        ({"page": torch.zeros(5)}, "page has dtype torch.float32; allowed: torch.int32"),
        ({"offset": torch.zeros(4).int()}, r"offset has shape \[4\]; it must be \[5\]"),
        ({"cos": torch.zeros(50, 32)}, r"cos has shape \[50, 32\]; it must be \[50, 64\]"),
        ({"sin": torch.zeros(64, 50).T}, r"sin has strides \(1, 50\); it must be contiguous"),
        ({"position": None, "cos": torch.zeros(4, 64)}, r"cos has shape .* must have 5 rows"),
        ({"q_norm": torch.zeros(64)}, "q_norm and k_norm: one is None; give both or neither"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = Case().arguments(torch.float32, torch.device("cpu")) | change
    with pytest.raises(ValueError, match=message):
        rope_kv_write(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("page", NUM_PAGES, r"page\[1\] is 7; allowed: 0 to 6"),
        ("offset", -1, r"offset\[1\] is -1; allowed: 0 to 2"),
        ("position", NUM_POSITIONS, r"position\[1\] is 50; allowed: 0 to 49"),
    ],
)
def test_debug_mode_names_what_is_out_of_range(
    name: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    arguments = Case().arguments(torch.float32, DEVICE)
    arguments[name][1] = value
    with pytest.raises(ValueError, match=message):
        rope_kv_write(**arguments)
