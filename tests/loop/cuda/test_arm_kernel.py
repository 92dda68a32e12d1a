"""The one kernel of the loop that is CUDA C compiles, for GPUs that are not here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rsd_engine.loop.cuda.arm_kernel import SOURCE


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed here")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiles(arch: str, tmp_path: Path) -> None:
    source, out = tmp_path / "arm.cu", tmp_path / "arm.cubin"
    source.write_text(SOURCE)
    command = ["nvcc", f"-arch={arch}", "-cubin", "-Werror", "all-warnings", "-o", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert b"cudaGraphSetConditional" in out.read_bytes()
