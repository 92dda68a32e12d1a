"""Runs a file of Triton checks in a process of its own.

`TRITON_INTERPRET` is read when a kernel is decorated, so one process either interprets kernels on
the CPU or compiles them for a GPU, never both. Such a file is called `triton_*_checks.py`, which
pytest does not collect by itself.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter keeps bfloat16 as integers and multiplies those in a dot product.
DOT_DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_checks(name: str, *, interpreted: bool, timeout: float = 280) -> None:
    """Runs tests/kernels/`name` and fails with its report if any of it fails, or none ran."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = [str(ROOT / "kernels"), str(ROOT)]
    variables["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    if interpreted:
        variables |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "RSD_CPU_LIBRARY": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    # A GPU is seldom at hand: one run there shall show more than the first failure.
    command += ["--maxfail", "1" if interpreted else "10", "--tb", "short"]
    if not interpreted and torch.cuda.is_available() and util.find_spec("xdist") is not None:
        command += ["-n", "4"]  # most of the time is compiling
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "kernels" / name)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def broken(module: ModuleType, folder: Path, right: str, wrong: str) -> ModuleType:
    """The module with one piece of its source replaced: a bug that a test must catch."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(right) == 1, f"{right!r} must stand in {module.__name__} once"
    path = folder / "broken_kernel.py"
    path.write_text(source.replace(right, wrong))
    spec = util.spec_from_file_location("broken_kernel", path)
    assert spec is not None and spec.loader is not None
    copy = util.module_from_spec(spec)
    sys.modules[spec.name] = copy
    spec.loader.exec_module(copy)
    return copy


def far_pages(folder: Path, num_pages: int, sizes: tuple[int, ...]) -> Tensor:
    """fp16 pages of `sizes`, 2^30 elements apart: from page 2 on, offsets need 64 bits.

    On a CPU they lie in a sparse file, of which only what is written takes room.
    """
    stride = 1 << 30
    if INTERPRETED:
        shape = (num_pages * stride,)
        memory = torch.from_numpy(np.memmap(folder / "pages", np.float16, "w+", shape=shape))
    else:
        memory = torch.empty(num_pages * stride, dtype=torch.float16, device=DEVICE)
    inner = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return memory.as_strided((num_pages, *sizes), (stride, *inner))


def assert_close(result: Tensor, plain: Tensor, exact: Tensor, *, num_terms: int) -> None:
    """The kernel's error is at most twice that of plain PyTorch in the same dtype.

    Both are measured against float64, by their largest element. Where PyTorch is lucky, what one
    rounding to the dtype and a plain fp32 sum of `num_terms` terms cost is allowed in its place.
    """
    assert result.shape == exact.shape
    assert bool(result.isfinite().all()), "not finite"
    if exact.numel() == 0:
        return
    error = (result.double() - exact).abs().max().item()
    of_pytorch = (plain.double() - exact).abs().max().item()
    summing = torch.finfo(torch.float32).eps * num_terms**0.5
    floor = max(torch.finfo(result.dtype).eps, summing) * exact.abs().max().item()
    assert error <= max(2 * of_pytorch, floor), f"error {error:.3g}, PyTorch has {of_pytorch:.3g}"
