"""The registered ops: schemas, fakes and mutation marks, and that they are the twins."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rsd_kernels.torch_ops
from rsd_kernels.linear.twin import linear
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.rope.tables import rope_tables

ROOT = Path(__file__).resolve().parents[2]
OPS = torch.ops.rsd
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def arguments(name: str) -> tuple[Any, ...]:
    """Two sequences, with one new row and with three, on pages of another layout."""
    if name == "linear":
        return numbers(3, 8), numbers(5, 8), numbers(5), numbers(3, 5)
    if name in ("norm_linear", "norm_gate_up"):
        return numbers(3, 8), numbers(8), 1e-5, numbers(6, 8), None
    pages = numbers(9, 2, 4, 2, 16)  # K and V side by side
    k_pages, v_pages = pages[:, 0], pages[:, 1]
    if name == "rope_kv_write":
        tables = rope_tables(torch.ones(8), 40)
        places = whole(5, 1, 1, -1), whole(3, 0, 1, 0)
        return numbers(4, 8, 16), k_pages, v_pages, *places, *tables, whole(8, 3, 4, 0)
    assert name == "paged_attention"
    batch = whole(1, 0), whole(0, 1, 4), whole(9, 6)
    table = torch.arange(6, dtype=torch.int32).view(2, 3)
    return numbers(5, 4, 16), k_pages, v_pages, *batch, table, 0.25, 7


NAMES = ["linear", "norm_linear", "norm_gate_up", "rope_kv_write", "paged_attention"]


def to(device: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake(name: str, device: str) -> None:
    if name == "rope_kv_write":  # K and V share memory, which the check would take for an alias
        qkv, k_pages, v_pages, *rest = arguments(name)
        values = (qkv, k_pages.clone(), v_pages.clone(), *rest)
    else:
        values = arguments(name)
    torch.library.opcheck(getattr(OPS, name).default, to(device, values))


def test_they_are_the_twins() -> None:
    x, weight, bias, residual = arguments("linear")
    wanted = linear(x, LinearWeight(weight, bias), residual=residual)
    assert torch.allclose(OPS.linear(x, weight, bias, residual), wanted, atol=1e-6)
    q, *rest = arguments("paged_attention")
    out = OPS.paged_attention(q, *rest)
    assert bool((out[4] == 0).all()), "a row of no sequence"
    k, v = rest[0][3:6].reshape(12, 2, 16)[2:9], rest[1][3:6].reshape(12, 2, 16)[2:9]
    for head in range(4):
        weight = (k[:, head // 2] @ q[0, head] * 0.25).softmax(0)
        assert torch.allclose(out[0, head], weight @ v[:, head // 2], atol=1e-6)


def test_rope_kv_write_writes_its_pages() -> None:
    qkv, k_pages, v_pages, *rest = arguments("rope_kv_write")
    before, v = v_pages.clone(), qkv[:, 6:].clone()
    OPS.rope_kv_write(qkv, k_pages, v_pages, *rest)
    assert torch.equal(v_pages[5, 3], v[0])
    assert torch.equal(v_pages[1, :2], v[1:3])
    before[5, 3], before[1, :2] = v[0], v[1:3]
    assert torch.equal(v_pages, before), "wrote elsewhere"


def test_compiled_whole() -> None:
    x, norm, eps, weight, _ = arguments("norm_linear")

    def block(x: Tensor) -> Tensor:
        return OPS.norm_gate_up(x, norm, eps, weight, gelu=True) * 2

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), block(x))


def test_the_namespace_is_said() -> None:
    assert rsd_kernels.torch_ops.NAMESPACE == "rsd"
    assert not [name for name in NAMES if not hasattr(OPS, name)]


def test_no_triton_on_a_cpu() -> None:
    """Loading the ops and running them on CPU tensors neither needs nor loads a kernel."""
    code = """
        import sys
        sys.modules["triton"] = None  # every `import triton` now raises ImportError
        import torch
        import rsd_kernels.torch_ops
        from rsd_kernels.model_ops import model_ops
        x = torch.ones(2, 4)
        assert bool((torch.ops.rsd.linear(x, x) == 4).all())
        assert model_ops(x).backend != "triton"
        assert "rsd_kernels.linear.kernel" not in sys.modules
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
