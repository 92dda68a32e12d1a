"""Triton's way from a launcher to a driver, with a driver that has no device."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "kernels/launch_checks.py"


def test_on_a_fake_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the real driver: the checks of every kernel use it")
    run_checks(CHECKS, interpreted=False, fake_driver=True)
