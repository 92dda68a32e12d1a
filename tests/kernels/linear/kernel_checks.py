"""Products, alone and after a norm, in Triton against their twins. Run by `test_kernel.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels.linear import kernel as projection
from rsd_kernels.linear import launchers, tiles
from rsd_kernels.linear import twin as linear_twin
from rsd_kernels.linear.tiles import MAX_ROWS
from rsd_kernels.linear.weight import LinearWeight
from tests.kernels.harness.broken import broken
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE, DOT_DTYPES, DTYPES, assert_close, nan, rows

EPS = 1e-5
CPU = torch.device("cpu")
# outputs, inputs: tiny, odd, a step and a bit, several steps
SHAPES = [(1, 1), (5, 24), (33, 40), (7, 515), (20, 1100)]
ROWS = [0, 1, 3, 5, 16]  # beyond: cuBLAS


def inputs(num_rows: int, num_outputs: int, num_inputs: int) -> dict[str, Tensor]:
    return {
        "x": rows(num_rows, num_inputs, 1) * 3,
        "weight": rows(num_outputs, num_inputs, 2),
        "bias": rows(1, num_outputs, 3)[0] / 8,  # small: no cancellation
        "norm": rows(1, num_inputs, 4)[0],
        "residual": rows(num_rows, num_outputs, 5),
    }


def pick(
    tensors: dict[str, Tensor],
    names: str,
    dtype: torch.dtype,
    of: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """The named tensors, rounded to `dtype`, held as `of`; with NaN in outputs and scratch."""
    kept: dict[str, Any] = {name: tensors[name].to(dtype).to(device, of) for name in names.split()}
    kept["weight"] = LinearWeight(kept["weight"], kept.pop("bias", None))
    if "norm" in kept:
        kept |= {"eps": EPS, "normed": torch.full_like(kept["x"], float("nan"))}
    return kept


def dtypes_for(num_rows: int) -> tuple[torch.dtype, ...]:
    """More than 4 rows go by `tl.dot`, which the interpreter computes wrongly in bfloat16."""
    return DOT_DTYPES if num_rows > 4 else DTYPES


@pytest.mark.parametrize("names", ["x weight", "x weight bias", "x weight residual"])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("num_rows", ROWS)
def test_linear(num_rows: int, num_outputs: int, num_inputs: int, names: str) -> None:
    tensors = inputs(num_rows, num_outputs, num_inputs)
    for dtype in dtypes_for(num_rows):
        exact = linear_twin.linear(**pick(tensors, names, dtype, torch.float64, CPU))
        plain = linear_twin.linear(**pick(tensors, names, dtype, dtype, CPU))
        out = nan(num_rows, num_outputs, dtype=dtype, device=DEVICE)
        result = launchers.linear(**pick(tensors, names, dtype, dtype, DEVICE), out=out)
        assert result is out
        assert_close(result.cpu(), plain, exact, num_terms=num_inputs + 4)


@pytest.mark.parametrize("num_rows", [1, 5, 17])
def test_a_residual_may_be_the_output(num_rows: int) -> None:
    tensors = inputs(num_rows, 33, 40)
    names, dtype = "x weight bias residual", torch.float32
    exact = linear_twin.linear(**pick(tensors, names, dtype, torch.float64, CPU))
    arguments = pick(tensors, names, dtype, dtype, DEVICE)
    result = launchers.linear(**arguments, out=arguments["residual"])
    assert_close(result.cpu(), exact.float(), exact, num_terms=44)


@pytest.mark.parametrize("num_rows", [1, 5, *([] if INTERPRETED else [17])])
def test_logits_may_be_wider_than_the_model(num_rows: int) -> None:
    tensors = inputs(num_rows, 33, 40)
    for dtype in dtypes_for(num_rows):
        exact = linear_twin.linear(**pick(tensors, "x weight", dtype, torch.float64, CPU))
        out = nan(num_rows, 33, dtype=torch.float32, device=DEVICE)
        launchers.linear(**pick(tensors, "x weight", dtype, dtype, DEVICE), out=out)
        assert_close(out.cpu(), exact.float(), exact, num_terms=44)


@pytest.mark.parametrize("bias", ["", " bias"])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 3, 4, 7])
def test_norm_linear(num_rows: int, num_outputs: int, num_inputs: int, bias: str) -> None:
    tensors, names = inputs(num_rows, num_outputs, num_inputs), "x norm weight" + bias
    for dtype in dtypes_for(num_rows):

        def out(dtype: torch.dtype, device: torch.device) -> Tensor:
            return nan(num_rows, num_outputs, dtype=dtype, device=device)

        exact = linear_twin.norm_linear(
            **pick(tensors, names, dtype, torch.float64, CPU), out=out(torch.float64, CPU)
        )
        plain = linear_twin.norm_linear(
            **pick(tensors, names, dtype, dtype, CPU), out=out(dtype, CPU)
        )
        result = launchers.norm_linear(
            **pick(tensors, names, dtype, dtype, DEVICE), out=out(dtype, DEVICE)
        )
        assert_close(result.cpu(), plain, exact, num_terms=num_inputs + 4)


@pytest.mark.parametrize("bias", ["", " bias"])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(5, 24), (33, 515)])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 4, 16])
def test_norm_gate_up(num_rows: int, num_outputs: int, num_inputs: int, bias: str) -> None:
    tensors = inputs(num_rows, 2 * num_outputs, num_inputs)
    names = "x norm weight" + bias
    for dtype in dtypes_for(num_rows):

        def given(of: torch.dtype, device: torch.device, dtype: torch.dtype = dtype) -> Any:
            gate_up = nan(num_rows, 2 * num_outputs, dtype=of, device=device)
            out = nan(num_rows, num_outputs, dtype=of, device=device)
            return pick(tensors, names, dtype, of, device) | {"gate_up": gate_up, "out": out}

        exact = linear_twin.norm_gate_up(**given(torch.float64, CPU))
        plain = linear_twin.norm_gate_up(**given(dtype, CPU))
        result = launchers.norm_gate_up(**given(dtype, DEVICE))
        assert_close(result.cpu(), plain, exact, num_terms=num_inputs + 4)


@pytest.mark.parametrize("num_programs", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_programs_may_compute_several_tiles(
    num_rows: int, num_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bits of programs that compute one."""
    for name in ("_MULTIPROCESSORS", "_RESIDENT", "RESIDENT"):
        monkeypatch.setattr(tiles, name, 1)
    monkeypatch.setattr(projection, "multiprocessors", lambda: num_programs)
    tensors, dtype = inputs(num_rows, 66, 1100), torch.float32
    given = pick(tensors, "x norm weight bias", dtype, dtype, DEVICE)
    del given["normed"]
    out = nan(num_rows, 33, dtype=torch.float32, device=DEVICE)
    launch = projection.projection_launch(**given, out=out, gated=True)
    num_tiles = -(-33 // launch.args["BLOCK_N"])
    assert launch.args["PERSISTENT"] and launch.grid[0] <= num_programs < num_tiles
    launch.run()
    found = out.clone()
    out.fill_(torch.nan)
    replace(launch, grid=(num_tiles,), args=launch.args | {"PERSISTENT": False}).run()
    assert torch.equal(found, out) and bool(out.isfinite().all())


@pytest.mark.parametrize("num_rows", [1, 3, 7, MAX_ROWS + 1])
@pytest.mark.parametrize("names", ["x weight", "x norm weight bias"])
def test_gelu_and_no_norm(num_rows: int, names: str) -> None:
    tensors = inputs(num_rows, 66, 40)

    def given(of: torch.dtype, device: torch.device) -> Any:
        outputs = {
            "gate_up": nan(num_rows, 66, dtype=of, device=device),
            "out": nan(num_rows, 33, dtype=of, device=device),
        }
        absent = {"norm": None, "eps": 0.0, "normed": None}
        return absent | pick(tensors, names, torch.float32, of, device) | outputs | {"gelu": True}

    exact = linear_twin.norm_gate_up(**given(torch.float64, CPU))
    plain = linear_twin.norm_gate_up(**given(torch.float32, CPU))
    result = launchers.norm_gate_up(**given(torch.float32, DEVICE))
    assert_close(result.cpu(), plain, exact, num_terms=48)


def test_more_rows_go_by_cublas() -> None:
    tensors = inputs(MAX_ROWS + 1, 66, 40)
    names, dtype = "x norm weight bias", torch.float32
    for of in (torch.float64, dtype):
        gate_up = nan(17, 66, dtype=of, device=CPU)
        exact = linear_twin.norm_gate_up(
            **pick(tensors, names, dtype, of, CPU),
            gate_up=gate_up,
            out=nan(17, 33, dtype=of, device=CPU),
        )
        if of == torch.float64:
            gated, product = exact, gate_up
    arguments = pick(tensors, names, dtype, dtype, DEVICE)
    scratch = nan(17, 66, dtype=dtype, device=DEVICE)
    out = nan(17, 33, dtype=dtype, device=DEVICE)
    launchers.norm_gate_up(**arguments, gate_up=scratch, out=out)
    assert_close(out.cpu(), gated.float(), gated, num_terms=44)
    out = nan(17, 66, dtype=dtype, device=DEVICE)
    launchers.norm_linear(**arguments, out=out)
    assert_close(out.cpu(), product.float(), product, num_terms=44)


def test_fp16_does_not_overflow_before_the_norm() -> None:
    for num_rows in (2, 8):
        x = torch.full((num_rows, 64), 6e4, dtype=torch.float16, device=DEVICE)
        norm = torch.full((64,), 4.0, dtype=torch.float16, device=DEVICE)
        weight = LinearWeight(torch.eye(8, 64, dtype=torch.float16, device=DEVICE))
        out = nan(num_rows, 8, dtype=torch.float16, device=DEVICE)
        launchers.norm_linear(x, norm, EPS, weight, normed=torch.empty_like(x), out=out)
        assert torch.equal(out, torch.full_like(out, 4.0))


@pytest.mark.skipif(not INTERPRETED, reason="reads out of bounds on purpose")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("m_k = o_k < NUM_INPUTS\n", "m_k = o_k <= NUM_INPUTS\n"),
        ("b_up += b_x * b_w", "b_up += b_x * b_w + b_w"),
        ("sum(b_square, 2) / NUM_INPUTS", "sum(b_square, 2) / BLOCK_K"),
    ],
    ids=["past the row", "added twice", "mean"],
)
def test_a_bug_is_caught(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_kernel = broken(projection, tmp_path, right, wrong)
    monkeypatch.setattr(launchers, "projection_launch", wrong_kernel.projection_launch)
    with pytest.raises(AssertionError):
        test_norm_gate_up(2, 33, 515, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"x has shape \[8\]; it must have 2 dimensions"),
        ({"x": torch.zeros(2, 7)}, r"weight has shape \[3, 8\]; it must be \[3, 7\]"),
        ({"x": torch.zeros(2, 8).double()}, "x has dtype torch.float64; allowed: "),
        ({"weight": torch.zeros(3, 8).half()}, "weight has dtype torch.float16; allowed: torch.fl"),
        ({"weight": torch.zeros(8, 3).T}, r"weight has strides \(1, 3\); its last dimension"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\]; it must be \[3\]"),
        ({"out": torch.zeros(1, 3)}, r"out has shape \[1, 3\]; it must be \[2, 3\]"),
        ({"residual": torch.zeros(2, 4)}, r"residual has shape \[2, 4\]; it must be \[2, 3\]"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Tensor], message: str) -> None:
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(3, 8), "out": torch.zeros(2, 3)}
    moved: dict[str, Any] = {
        name: tensor.to(DEVICE) for name, tensor in (arguments | change).items()
    }
    weight = LinearWeight(moved.pop("weight"), moved.pop("bias", None))
    with pytest.raises(ValueError, match=message):
        launchers.linear(weight=weight, **moved)
