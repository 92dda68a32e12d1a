"""Reward scoring and rollback on foreign tensors; the engine's ops without Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import rsd_kernels.torch_ops
from rsd_kernels.policy.formula import PolicyKind
from tests.kernels.harness.child import ROOT

OPS = torch.ops.rsd
NAMES = ["rollback", "value_reward_accept", "two_class_reward_accept", "ensemble_reward_accept"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def arguments(name: str, device: str = "cpu") -> tuple[Any, ...]:
    """One model's page table of three slots; four rows and their policies."""
    if name == "rollback":
        table = torch.arange(12, dtype=torch.int32).view(1, 3, 4)
        free = torch.full((16,), -1, dtype=torch.int32)
        free[:3] = whole(12, 13, 14)
        values: tuple[Any, ...] = (
            whole(7, 8, 1)[None], whole(4, 4, 1)[None], table, free, whole(3),
            whole(*[1] * 12, 0, 0, 0, 0), whole(3, 9, 0)[None], [2],
        )  # fmt: skip
    else:
        kinds = whole(*[PolicyKind.THRESHOLD] * 3, PolicyKind.CONSTANT)
        policy = (kinds, torch.full((4,), 0.95), torch.zeros(4), torch.full((4,), 0.4))
        head: tuple[Tensor, ...] = (numbers(1, 8), numbers(1))
        if name == "two_class_reward_accept":
            head = (numbers(6, 8), numbers(6), numbers(2, 6), numbers(2))
        elif name == "ensemble_reward_accept":
            head = (
                numbers(3, 8, 5), numbers(3, 5), numbers(3, 5, 5), numbers(3, 5),
                numbers(3, 5, 1), numbers(3, 1),
            )  # fmt: skip
        values = (numbers(4, 8), numbers(8), 1e-6, *head, *policy)
    return tuple(v.to(device) if isinstance(v, Tensor) else v for v in values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake(name: str, device: str) -> None:
    torch.library.opcheck(getattr(OPS, name).default, arguments(name, device))


@pytest.mark.parametrize("device", DEVICES)
def test_rollback_returns_pages(device: str) -> None:
    kv_len, num_pages, table, free, num_free, owners, keep, sizes = arguments("rollback", device)
    owners[9] = 2
    OPS.rollback(kv_len, num_pages, table, free, num_free, owners, keep, sizes)
    assert kv_len.tolist() == [[3, 8, 0]]
    assert num_pages.tolist() == [[2, 4, 0]]
    assert free[: int(num_free)].tolist() == [12, 13, 14, 3, 2, 8]


@pytest.mark.parametrize("device", DEVICES)
def test_a_value_head_and_a_threshold(device: str) -> None:
    hidden, norm, eps, weight, bias, *policy = arguments("value_reward_accept", device)
    reward, accept = OPS.value_reward_accept(hidden, norm, eps, weight, bias, *policy)
    normed = torch.nn.functional.rms_norm(hidden, (8,), norm, eps)
    expected = torch.sigmoid(normed @ weight[0] + bias)
    torch.testing.assert_close(reward, expected)
    assert 0 < int((expected[:3] >= 0.95).sum()) < 3, "both decisions must be there"
    assert accept.tolist() == [*(expected[:3] >= 0.95).int().tolist(), 1]


@pytest.mark.parametrize("device", DEVICES)
def test_an_ensemble_of_heads(device: str) -> None:
    arguments_ = arguments("ensemble_reward_accept", device)
    reward, _ = OPS.ensemble_reward_accept(*arguments_)
    hidden, norm, eps, w1, b1, w2, b2, w3, b3 = arguments_[:9]
    normed = torch.nn.functional.rms_norm(hidden, (8,), norm, eps)
    each = []
    for e in range(3):
        units = torch.relu(torch.relu(normed @ w1[e] + b1[e]) @ w2[e] + b2[e])
        each.append(torch.sigmoid(units @ w3[e] + b3[e])[:, 0])
    torch.testing.assert_close(reward, (each[0] + each[1] + each[2]) / 3)


def test_a_cpu_run_imports_no_triton() -> None:
    code = """
        import sys
        from tests.kernels.harness.shadow import random_core, random_requests
        from tests.loop.toy import run
        before = "triton" in sys.modules
        run(random_core(1), random_requests(1, 2))
        names = [name for name in sys.modules if name.startswith("rsd_kernels.")]
        assert "rsd_kernels.ops" in names and "rsd_kernels.schedule.kernel" not in names
        assert ("triton" in sys.modules) == before == False
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_namespace_has_them() -> None:
    assert rsd_kernels.torch_ops.NAMESPACE == "rsd"
    assert not [name for name in NAMES if not hasattr(OPS, name)]
