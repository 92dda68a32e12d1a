"""The executors of a GPU on a driver without a device, through the bindings that they use there.

The bindings load `libcuda.so.1` once, so the fake one is found by a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from tests.fake_cuda.build import build
from tests.kernels.harness.child import ROOT

VARIABLES = {"OMP_NUM_THREADS": "1", "RSD_TEST_PROBLEMS": "8"}


@pytest.mark.timeout(280)
def test_on_a_fake_driver(tmp_path: Path) -> None:
    if util.find_spec("cuda") is None or util.find_spec("cuda.bindings") is None:
        pytest.skip("cuda-bindings is not installed here")
    if torch.cuda.is_available():
        pytest.skip("this machine has the real driver: test_executors.py uses it")
    build(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "loop" / "executors" / "cuda_graph_checks.py")],
        cwd=ROOT,
        env=os.environ | VARIABLES | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
