"""Compile launches ahead of time, without a GPU, and read the resources that they use."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton.backends.nvidia

from rsd_kernels.aot.variant import variant_of
from rsd_kernels.launch import Launch


@dataclass(frozen=True)
class Usage:
    """The resources of a compiled kernel."""

    registers: int  # of a thread
    shared_bytes: int  # of a program
    stack_bytes: int  # of a thread; registers that do not fit are spilled here


def compile_launch(launch: Launch, capability: int) -> Any:
    """The compiled kernel of a launch; `capability` is 80 for sm_80, and so on.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
    """
    return variant_of(launch, capability).compile(capability)


def usage(compiled: Any) -> Usage:
    """Reads the machine code with the cuobjdump that comes with Triton."""
    tool = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        done = subprocess.run(
            [tool, "-res-usage", path], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout + done.stderr))
    return Usage(
        registers=int(found["REG"]),
        shared_bytes=int(compiled.metadata.shared),
        stack_bytes=int(found["STACK"]) + int(found["LOCAL"]),
    )
