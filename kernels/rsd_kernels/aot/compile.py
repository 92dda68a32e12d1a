"""Compile launches ahead of time, without a GPU, and read the resources that they use.

Arguments are specialised as Triton's just-in-time compiler does (pointers and integers divisible by
16, integers equal to 1, None), so the code is what runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.backends.nvidia
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rsd_kernels.launch import Launch, interpreting

_WARP_SIZE = 32
_DIVISIBILITY = [["tt.divisibility", 16]]
_POINTER = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


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
    if interpreting():
        raise RuntimeError(
            "TRITON_INTERPRET is set, so kernels are interpreted; unset it to compile them"
        )
    all_args = launch.all_args
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = all_args[parameter.name]
        if isinstance(value, tuple):  # a named tuple of arguments, see `state.args`
            fields = [
                _enter(parameter, (index, i), field, constants, attributes)
                for i, field in enumerate(value)
            ]
            signature[parameter.name] = type(value)(*fields)
        else:
            signature[parameter.name] = _enter(parameter, (index,), value, constants, attributes)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, _WARP_SIZE)
    return triton.compile(source, target=target, options=launch.options)


def _enter(
    parameter: Any,
    path: tuple[int, ...],
    value: Any,
    constants: dict[tuple[int, ...], Any],
    attributes: dict[tuple[int, ...], Any],
) -> str:
    """Triton's type of the argument at `path`; enters its value or divisibility if it has one."""
    kind, aligned = _specialise(parameter, value)
    if kind == "constexpr":
        constants[path] = value
    elif aligned:
        attributes[path] = _DIVISIBILITY
    return kind


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


def _specialise(parameter: Any, value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, and whether it (a pointer's address) is divisible by 16."""
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if isinstance(value, Tensor):
        offset = value.storage_offset() * value.element_size()
        return _POINTER[value.dtype], offset % 16 == 0
    if isinstance(value, bool):
        return "u1", False
    if isinstance(value, int):
        if parameter.do_not_specialize:
            return "i32", False
        if value == 1:
            return "constexpr", False
        return "i32" if abs(value) < 1 << 31 else "i64", value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    kind = type(value).__name__
    raise TypeError(f"argument {parameter.name} is a {kind}; allowed: tensors, numbers, None")
