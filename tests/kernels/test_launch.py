"""Triton's way from a launcher to a driver, with a driver that has no device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fake_cuda.build import build
from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")


def test_on_a_fake_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the real driver: the checks of every kernel use it")
    build(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    run_checks("kernels/launch_checks.py", interpreted=False)
