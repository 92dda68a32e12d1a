"""Compiles the driver and NVRTC that stand in for the real ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {
    "libcuda.so.1": "driver.cpp",
    "libnvrtc.so.13": "nvrtc.cpp",
    "libnvrtc.so.12": "nvrtc.cpp",
}


def build(compiler: str, folder: Path) -> None:
    """Puts the libraries into `folder`, by the names that the bindings look for."""
    for library, source in LIBRARIES.items():
        command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        command += ["-pthread", "-o", str(folder / library), str(HERE / source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
