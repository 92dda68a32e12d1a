"""The cache of compiled kernels; a process of its own, see the checks."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS = "bench/gpu/cache_checks.py"


def test_without_a_device() -> None:
    run_checks(CHECKS, interpreted=False)
