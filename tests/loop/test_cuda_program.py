"""The ops of the loop on CUDA tensors without a device; a process of its own, see the checks."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "loop/cuda_program_checks.py"


def test_without_a_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a device: the executors run every op there")
    run_checks(CHECKS, interpreted=False)
