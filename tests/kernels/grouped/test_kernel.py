"""Products with weights in few bits, in Triton: interpreted, and on a GPU if there is one."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "kernels/grouped/kernel_checks.py"
ALL = "kernels/grouped/all_checks.py"


def test_in_the_interpreter() -> None:
    run_checks(CHECKS, interpreted=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_combination() -> None:
    run_checks(ALL, interpreted=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [CHECKS, ALL])
def test_on_the_device(name: str) -> None:
    run_checks(name, interpreted=False)
