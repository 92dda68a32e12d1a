"""Norm, projection, rotation and store in one launch against their twins.

Run by `test_kernel.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.qkv import kernel
from rsd_kernels.qkv.twin import qkv_projection as twin
from rsd_kernels.rope.tables import rope_tables
from tests.kernels.harness.broken import broken
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE, DOT_DTYPES, assert_close, far_pages

NUM_PAGES, PER_PAGE, NUM_POSITIONS = 9, 3, 50


@dataclass
class Case:
    """Rows of which the last is padding, to be stored in pages of NaN."""

    num_rows: int = 3
    hidden: int = 40
    num_q_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 16
    bias: bool = True
    norm: bool = False  # of heads
    norm_first: bool = True  # of x
    tables: bool = True  # angles by position, else a row of angles for every row

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Fresh tensors for one call, with K and V of a page side by side."""
        generator = torch.Generator().manual_seed(self.hidden + self.num_rows)
        heads, size = self.num_q_heads + 2 * self.num_kv_heads, self.head_dim
        shapes = {
            "x": (self.num_rows, self.hidden),
            "norm": (self.hidden,),
            "weight": (heads * size, self.hidden),
        }
        if self.bias:
            shapes["bias"] = (heads * size,)
        if self.norm:
            shapes |= {"q_norm": (size,), "k_norm": (size,)}
        # In 16 bits first, so that all dtypes are given the same numbers.
        drawn: dict[str, Any] = {
            name: torch.randn(shape, generator=generator).to(torch.bfloat16).to(device, dtype)
            for name, shape in shapes.items()
        }
        drawn["weight"] *= self.hidden**-0.5
        places = torch.randperm(NUM_PAGES * PER_PAGE, generator=generator)[: self.num_rows].int()
        page, position = places // PER_PAGE, torch.randint(50, places.shape, generator=generator)
        page[-1:], position[-1:] = -1, 1 << 30
        cos, sin = rope_tables(100.0 ** -torch.linspace(0, 1, size // 2), NUM_POSITIONS, 1.25)
        if not self.tables:
            row = position.clamp(max=NUM_POSITIONS - 1)
            cos, sin = cos[row], sin[row]
        # A page stands before the first one, where a store of padding would end up.
        shape = (1 + NUM_PAGES, 5, PER_PAGE, self.num_kv_heads, size)
        pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
        qkv = torch.full((self.num_rows, heads, size), float("nan"), dtype=dtype, device=device)
        where = {"page": page, "offset": places % PER_PAGE, "cos": cos, "sin": sin}
        if self.tables:
            where["position"] = position.int()
        weight = LinearWeight(drawn.pop("weight"), drawn.pop("bias", None))
        if not self.norm_first:
            drawn |= {"norm": None}
        return {
            **{**drawn, "weight": weight, "eps": 1e-6},
            **{name: tensor.to(device) for name, tensor in where.items()},
            **{"k_pages": pages[1:, 1], "v_pages": pages[1:, 3], "heads": qkv},
            "normed": torch.empty_like(drawn["x"]),
        }

    def by_twin(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        arguments = self.arguments(dtype, torch.device("cpu"))
        if self.tables:  # the twin gathers the angles of padding too
            arguments["position"].clamp_(max=NUM_POSITIONS - 1)
        twin(**arguments)
        return self.results(arguments)

    def results(self, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """q of all rows but padding, and the two planes of the pages as they lie in memory."""
        pages = torch.stack((arguments["k_pages"], arguments["v_pages"]))
        return arguments["heads"][:-1, : self.num_q_heads].cpu(), pages.cpu()


def check(case: Case, dtype: torch.dtype, module: Any = kernel, **options: Any) -> None:
    arguments = case.arguments(dtype, DEVICE)
    module.qkv_projection(**arguments, **options)
    k_pages: Tensor = arguments["k_pages"]
    before = k_pages.as_strided((k_pages.stride(0),), (1,), 0)
    assert bool(before.isnan().all()), "padding was stored"
    q, pages = case.results(arguments)
    exact_q, exact_pages = case.by_twin(torch.float64)
    plain_q, plain_pages = case.by_twin(dtype)
    written = exact_pages.isfinite()
    assert int(written.sum()) == max(0, case.num_rows - 1) * 2 * case.num_kv_heads * case.head_dim
    assert torch.equal(pages.isfinite(), written), "wrote to the wrong place"
    assert_close(q, plain_q, exact_q, num_terms=case.hidden)
    assert_close(pages[written], plain_pages[written], exact_pages[written], num_terms=case.hidden)


CASES: dict[str, dict[str, Any]] = {
    "three rows": {},
    "one row": {"num_rows": 2},
    "only padding": {"num_rows": 1},
    "no rows": {"num_rows": 0},
    "tensor cores": {"num_rows": 9},
    "a full tile": {"num_rows": 16, "hidden": 130},
    "more than a tile": {"num_rows": 18},
    "norm of heads": {"norm": True},
    "no bias": {"bias": False},
    "no norm": {"norm_first": False},
    "gathered angles": {"tables": False},
    "head of 6": {"head_dim": 6, "num_q_heads": 3, "num_kv_heads": 1},
    "head of 80": {"head_dim": 80},
    "long rows": {"hidden": 1100, "num_q_heads": 2, "num_kv_heads": 1},
}


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_that_of_pytorch(name: str, dtype: torch.dtype) -> None:
    check(Case(**CASES[name]), dtype)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
def test_a_scheduled_pass_gives_the_same(dtype: torch.dtype) -> None:
    check(Case(), dtype, scheduled=True)


def test_one_launch_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def launch(*arguments: Any, **options: Any) -> Any:
        launched.append(arguments[0].shape[0])
        return kernel_launch(*arguments, **options)

    kernel_launch = kernel.qkv_projection_launch
    monkeypatch.setattr(kernel, "qkv_projection_launch", launch)
    for case in (Case(num_rows=16), Case(num_rows=17), Case(norm=True)):
        check(case, torch.float32)
    assert launched == [16]


def test_pages_may_lie_far_apart(tmp_path: Path) -> None:
    case = Case(num_rows=4)
    arguments = case.arguments(torch.float16, DEVICE)
    pages = far_pages(tmp_path, 3, (2, PER_PAGE, case.num_kv_heads, case.head_dim))
    arguments |= {"k_pages": pages[:, 0], "v_pages": pages[:, 1]}
    arguments["page"].copy_(torch.tensor([2, 0, 2, -1]))
    arguments["offset"].copy_(torch.tensor([1, 1, 0, 0]))
    kernel.qkv_projection(**arguments)
    near = arguments | {
        "k_pages": torch.full((3, PER_PAGE, 2, 16), float("nan")).half().to(DEVICE),
        "v_pages": torch.full((3, PER_PAGE, 2, 16), float("nan")).half().to(DEVICE),
    }
    kernel.qkv_projection(**near)
    for place in ((2, 1), (0, 1), (2, 0)):
        for name in ("k_pages", "v_pages"):
            assert bool(near[name][place].isfinite().all())
            assert torch.equal(arguments[name][place], near[name][place])


@pytest.mark.skipif(not INTERPRETED, reason="reads out of bounds on purpose")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("b_low * b_cos_low + b_high * b_sin_low", "b_low * b_cos_low - b_high * b_sin_low"),
        ("(i_k >= 0) & (i_v < 0)", "i_k >= 0"),
        ("m_kept[:, None] & m_n[None, :]", "m_r[:, None] & m_n[None, :]"),
        ("second = HALF * stride_weight", "second = stride_weight"),
        ("bias + o_low + HALF", "bias + o_low"),
    ],
    ids=["sign", "v among k", "padding", "partner", "bias"],
)
def test_a_bug_is_caught(right: str, wrong: str, tmp_path: Path) -> None:
    check(Case(), torch.float32)
    wrong_kernel = broken(kernel, tmp_path, right, wrong)
    with pytest.raises(AssertionError):
        check(Case(), torch.float32, wrong_kernel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": LinearWeight(torch.zeros(160, 39))},
            r"weight has shape \[160, 39\]; it must be \[160, 40\]",
        ),
        ({"norm": torch.zeros(39)}, r"norm has shape \[39\]; it must be \[40\]"),
        ({"offset": torch.zeros(2).int()}, r"offset has shape \[2\]; it must be \[3\]"),
        ({"heads": torch.zeros(3, 10, 16).half()}, "out has dtype torch.float16; allowed: "),
        ({"v_pages": torch.zeros(9, 3, 2, 16).half()}, "v_pages has dtype torch.float16; allowed"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = Case().arguments(torch.float32, torch.device("cpu")) | change
    with pytest.raises(ValueError, match=message):
        kernel.qkv_projection(**arguments)
