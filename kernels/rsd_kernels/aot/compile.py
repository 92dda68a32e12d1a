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
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _dumped(compiled, "-res-usage")))
    return Usage(
        registers=int(found["REG"]),
        shared_bytes=int(compiled.metadata.shared),
        stack_bytes=int(found["STACK"]) + int(found["LOCAL"]),
    )


def loop_instructions(compiled: Any) -> int:
    """Instructions of a turn of a kernel's longest loop, from a jump back to its target.

    Raises:
        ValueError: it has no loop.
    """
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", _dumped(compiled, "-sass"))
    addresses = [int(address, 16) for address, _ in code]
    lengths = [
        sum(int(target[1], 16) <= other <= address for other in addresses)
        for address, (_, text) in zip(addresses, code, strict=True)
        if (target := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) and int(target[1], 16) < address
    ]
    if not lengths:
        raise ValueError(f"{compiled.metadata.name} has no loop")
    return max(lengths)


def _dumped(compiled: Any, what: str) -> str:
    """What the cuobjdump that comes with Triton says of a kernel."""
    tool = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        done = subprocess.run([tool, what, path], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
