"""The cache of compiled kernels; a process of its own, see the checks."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")

CHECKS, OF_LARGE_MODELS = "bench/gpu/cache_checks.py", "bench/gpu/large_cache_checks.py"


def test_without_a_device() -> None:
    run_checks(CHECKS, interpreted=False)


@pytest.mark.slow
def test_large_models_without_a_device() -> None:
    run_checks(OF_LARGE_MODELS, interpreted=False)
