"""Control kernels in Triton: interpreted, compiled ahead of time, and on a GPU if there is one."""

from __future__ import annotations

import pytest

from tests.kernels.triton_child import run_checks

pytest.importorskip("triton")

CHECKS = (
    "triton_control_checks.py",
    "triton_reward_checks.py",
    "triton_sample_checks.py",
    "triton_append_checks.py",
)


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str) -> None:
    run_checks(name, interpreted=True)


def test_compile_ahead_of_time() -> None:
    run_checks("triton_control_aot_checks.py", interpreted=False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_device(name: str) -> None:
    run_checks(name, interpreted=False)
