"""The executors of a GPU on a driver without a device, through the bindings that they use there.

The bindings load `libcuda.so.1` once, so the fake one is found by a process of its own.
"""

from __future__ import annotations

from importlib import util

import pytest
import torch

from tests.kernels.harness.child import run_checks

CHECKS = "loop/executors/cuda_graph_checks.py"


def test_on_a_fake_driver() -> None:
    if util.find_spec("cuda") is None or util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed here")
    if torch.cuda.is_available():
        pytest.skip("this machine has the real driver: test_executors.py uses it")
    run_checks(CHECKS, interpreted=False, fake_driver=True)
