"""Compiles the driver and NVRTC that stand in for the real ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIBRARIES = {
    "libcuda.so.1": "driver.cpp",
    "libnvrtc.so.13": "nvrtc.cpp",
    "libnvrtc.so.12": "nvrtc.cpp",
}


def build(folder: Path) -> None:
    """Puts the libraries into `folder`, by the names that are asked for; or skips the test."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed here")
    for library, source in LIBRARIES.items():
        command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        command += ["-pthread", "-o", str(folder / library), str(HERE / source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
