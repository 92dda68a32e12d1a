"""Forks, shared pages and candidates in Triton: interpreted, and on a GPU."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "kernels/fork/kernel_checks.py"


def test_in_the_interpreter() -> None:
    run_checks(CHECKS, interpreted=True)


@pytest.mark.gpu
def test_on_the_device() -> None:
    run_checks(CHECKS, interpreted=False)
