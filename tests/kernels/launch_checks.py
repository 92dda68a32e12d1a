"""Launches as Triton makes them on a GPU: compiled just in time, handed to a driver, not run.

Run by `test_launch.py` in a process that finds a fake driver. The interpreter takes other
ways from a launcher to a kernel, so how a call becomes machine code and parameters is seen here.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels.aot import compile as aot
from rsd_kernels.aot.launches import (
    MODEL_SHAPES,
    forward_launches,
    grouped_launches,
    overlapped_launches,
)
from rsd_kernels.aot.loop_launches import loop_launches
from rsd_kernels.launch import Launch

MODEL = "Qwen2.5-1.5B"
STREAM = 0x5EED0
# One of each way to launch: few parameters and over a hundred, bundles, early, one program or many,
# pointers in a tensor.
FORWARD = (
    "embed", "qkv_projection", "paged_attention", "linear (down), early", "linear (o), int4, zeros",
)  # fmt: skip
LOOP_OPS = (
    "schedule_most_ready", "rollback", "reward_accept_value_1.5B_0", "write_1", "guess",
    "write_verifying_2", "fork_0",
)  # fmt: skip


class Pointer:
    """A tensor as Triton sees it: a dtype and an address."""

    def __init__(self, tensor: Tensor, index: int) -> None:
        self.dtype = tensor.dtype
        offset = int(tensor.storage_offset()) * tensor.element_size()
        self.address = (index + 1) * 0x100000 + offset

    def data_ptr(self) -> int:
        return self.address


def with_addresses(launch: Launch) -> Launch:
    """The launch with every tensor at an address of its own."""
    count = iter(range(1000))

    def addressed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Pointer(value, next(count))
        if isinstance(value, tuple):
            return type(value)(*(addressed(field) for field in value))
        return value

    return replace(launch, args={name: addressed(v) for name, v in launch.args.items()})


def parameters(kind: Any, value: Any) -> Iterator[tuple[int, int]]:
    """Size and bits of what the kernel gets for an argument; nothing for a constant."""
    if isinstance(kind, tuple):
        for inner, field in zip(kind, value, strict=True):
            yield from parameters(inner, field)
    elif kind[0] == "*":
        yield 8, value.data_ptr()
    elif kind == "fp32":
        yield 4, struct.unpack("<I", struct.pack("<f", value))[0]
    elif kind != "constexpr":
        size = {"i32": 4, "i64": 8, "u1": 1}[kind]
        yield size, value & ((1 << 8 * size) - 1)


@pytest.fixture(scope="module")
def driver() -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_launch_name.restype = ctypes.c_char_p
    for name in ("fake_launch_size", "fake_launch_stream", "fake_launch_parameter"):
        getattr(library, name).restype = ctypes.c_uint64
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=0: (9, 0),
        "get_device_properties": lambda device=0: SimpleNamespace(multi_processor_count=132),
        "current_stream": lambda device=0: SimpleNamespace(cuda_stream=STREAM),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        yield library


def all_launches() -> dict[str, Launch]:
    shape = MODEL_SHAPES[MODEL]
    shipped = [*forward_launches(MODEL, shape, 1), *overlapped_launches(MODEL, shape, 1)]
    shipped += grouped_launches(MODEL, 1, "int4, zeros")
    return {one.op: one.launch for one in shipped} | loop_launches()


@pytest.mark.parametrize("name", FORWARD + LOOP_OPS)
def test_the_driver_gets_the_code_compiled_ahead_and_every_parameter(
    name: str, driver: ctypes.CDLL
) -> None:
    launch = with_addresses(all_launches()[name])
    ahead = aot.compile_launch(all_launches()[name], 90)
    kinds = ahead.src.signature
    wanted = [
        one
        for parameter in launch.kernel.params
        for one in parameters(kinds[parameter.name], launch.all_args[parameter.name])
    ]
    driver.fake_set_num_parameters(len(wanted))
    before = driver.fake_num_launches()
    launch.run()
    assert driver.fake_num_launches() == before + 1

    found = [
        driver.fake_launch_parameter(i) & ((1 << 8 * size) - 1)
        for i, (size, _) in enumerate(wanted)
    ]
    assert found == [bits for _, bits in wanted]
    assert driver.fake_launch_name().decode() == launch.kernel.__name__
    grid = (*launch.grid, 1, 1)[:3]
    assert [driver.fake_launch_size(i) for i in range(6)] == [*grid, 32 * launch.num_warps, 1, 1]
    assert driver.fake_launch_stream() == STREAM
    assert bool(driver.fake_launch_may_start_early()) == launch.overlap
    compiled = list(launch.kernel.device_caches[0][0].values())
    assert ahead.asm["cubin"] in [one.asm["cubin"] for one in compiled]


def test_a_second_launch_compiles_nothing(driver: ctypes.CDLL) -> None:
    launch = with_addresses(all_launches()["embed"])
    driver.fake_set_num_parameters(0)
    launch.run()
    cache = launch.kernel.device_caches[0][0]
    size = len(cache)
    launch.run()
    assert len(cache) == size


def test_an_empty_grid_launches_nothing(driver: ctypes.CDLL) -> None:
    launch = replace(with_addresses(all_launches()["embed"]), grid=(0, 2))
    before = driver.fake_num_launches()
    launch.run()
    assert driver.fake_num_launches() == before
