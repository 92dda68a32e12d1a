"""The ops of the loop on CUDA tensors without a device; a process of its own, see the checks."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")


def test_on_tensors_without_memory() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a device: the executors run every op there")
    run_checks("loop/cuda_program_checks.py", interpreted=False)
