"""Sampling in Triton, each token appended: in the interpreter, and on a GPU where there is one."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = ("kernels/sample/kernel_checks.py", "kernels/sample/guess_checks.py")


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str) -> None:
    run_checks(name, interpreted=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_device(name: str) -> None:
    run_checks(name, interpreted=False)
