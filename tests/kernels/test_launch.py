"""Triton's way from a launcher to a driver, with a driver that has no device."""

from __future__ import annotations

import pytest
import torch

from rsd_kernels.launch import recorded_launches
from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "kernels/launch_checks.py"


def test_on_a_fake_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the real driver: the checks of every kernel use it")
    run_checks(CHECKS, interpreted=False, fake_driver=True)


def test_recorded_launches_do_not_run() -> None:
    """In order, with their arguments, on tensors without memory; outside these are refused."""
    from rsd_kernels.norm.kernel import rms_norm

    x, weight = (torch.empty(size, device="meta") for size in ((3, 8), (8,)))
    with recorded_launches() as launches:
        rms_norm(x, weight, 1e-6, out=x)
        rms_norm(x[:2], weight, 1e-6, out=x[:2])
        rms_norm(x[:0], weight, 1e-6, out=x[:0])  # nothing to launch
    assert [launch.grid for launch in launches] == [(3,), (2,)]
    assert launches[0].args["weight"] is weight
    with pytest.raises(ValueError, match="x is on meta; Triton kernels take CUDA tensors"):
        rms_norm(x, weight, 1e-6, out=x)
