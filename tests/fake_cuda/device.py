"""The device of the fake driver: streams whose kernels are Python functions.

Ops of a program become launches: captured where their stream captures, and run by the stream's own
thread where it does not. `torch.cuda` is patched where the executors use it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rsd_engine.loop.cuda import recorder as cuda_recorder
from rsd_engine.loop.program import Block, Call, Switch, While

DEVICE = torch.device("cuda")  # in name: every tensor is on the CPU
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class FakeStream:
    """See `torch.cuda.Stream`."""

    def __init__(self, driver: ctypes.CDLL) -> None:
        self._driver = driver
        self.cuda_stream: int = driver.fake_stream_create()

    def synchronize(self) -> None:
        self._driver.fake_stream_synchronize(ctypes.c_void_p(self.cuda_stream))

    def wait_stream(self, other: FakeStream) -> None:
        other.synchronize()

    def idle(self) -> bool:
        return bool(self._driver.fake_stream_idle(ctypes.c_void_p(self.cuda_stream)))


class FakeEvent:
    """See `torch.cuda.Event`: done when its stream is; its time is that of the recording."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._stream: FakeStream | None = None
        self._time = 0.0

    def record(self, stream: FakeStream) -> None:
        self._stream = stream
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        assert self._stream is not None
        self._stream.synchronize()

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end._time - self._time)

    def query(self) -> bool:
        return self._stream is None or self._stream.idle()


class FakeDevice:
    """The device as `torch.cuda` and the programs of the tests see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.driver.fake_stream_create.restype = ctypes.c_void_p
        self.driver.fake_first_fault.restype = ctypes.c_char_p
        self.errors: list[Exception] = []  # of ops, which run where nobody can catch them
        self.num_allocations = 0
        self.seconds_per_op = 0.0
        self._functions: list[Callable[[], None]] = []
        self._call = _HOST_FUNCTION(self._run)
        self._streams = [FakeStream(self.driver)]  # the current one last
        self._patch(monkeypatch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes: dict[str, Any] = {
            "Stream": lambda device: FakeStream(self.driver),
            "Event": FakeEvent,
            "stream": self._use_stream,
            "current_stream": lambda device: self._streams[-1],
            "MemPool": object,
            "use_mem_pool": self._use_pool,
            "memory_stats": lambda device: {"allocation.all.allocated": self.num_allocations},
            "mem_get_info": lambda device: (1 << 30, 1 << 31),
            "get_device_capability": lambda device: (9, 0),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        copy = cuda_recorder.copy_to_host

        def copy_later(mirror: torch.Tensor, flag: torch.Tensor) -> None:
            self.launch(lambda: copy(mirror, flag))

        monkeypatch.setattr(cuda_recorder, "copy_to_host", copy_later)
        self.driver.fake_use_device()  # as PyTorch does in the thread that asks for a stream

    @contextmanager
    def _use_stream(self, stream: FakeStream) -> Iterator[None]:
        self._streams.append(stream)
        yield
        self._streams.pop()

    @contextmanager
    def _use_pool(self, pool: object) -> Iterator[None]:
        yield

    def _run(self, index: int) -> None:
        time.sleep(self.seconds_per_op)
        try:
            self._functions[index]()
        except Exception as error:
            self.errors.append(error)

    def launch(self, fn: Callable[[], None]) -> None:
        """Launches `fn` as a kernel on the current stream."""
        self._functions.append(fn)
        stream = ctypes.c_void_p(self._streams[-1].cuda_stream)
        index = ctypes.c_int64(len(self._functions) - 1)
        self.driver.fake_enqueue(stream, self._call, index)

    def invalidate_capture(self) -> None:
        """What a call does that must not be made while a stream captures."""
        self.driver.fake_invalidate_capture(ctypes.c_void_p(self._streams[-1].cuda_stream))

    def set_version(self, version: int) -> None:
        self.driver.fake_set_version(version)

    def fault(self) -> str:
        """The first thing that the driver refused; empty if there was none."""
        return str(self.driver.fake_first_fault().decode())

    def num_alive(self) -> int:
        """Graphs, executable graphs and modules."""
        return int(self.driver.fake_num_alive())

    def on_device(self, block: Block) -> Block:
        """The program with every op a launch."""
        return tuple(self._node_on_device(node) for node in block)

    def _node_on_device(self, node: Call | Switch | While) -> Call | Switch | While:
        if isinstance(node, Call):
            return Call(node.name, lambda: self.launch(node.fn), node.sets)
        if isinstance(node, While):
            return While(node.flag, self.on_device(node.body))
        return Switch(node.index, tuple(self.on_device(body) for body in node.bodies))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """A device that must have nothing to complain of, and be left empty, in the end."""
    made = FakeDevice(monkeypatch)
    made.driver.fake_forget_fault()
    made.set_version(13000)
    made.driver.fake_take_conditionals(1)
    yield made
    assert not made.errors
    assert made.num_alive() == 0
