"""Finds data races of Triton kernels in the interpreter, which has none: it plays no threads.

It runs the programs of a launch one after another, and a program's threads in lock-step. So every
access to memory is written down with its program and with the barriers before it, and looked at
when the launch has ended. Of a byte that is stored to, these are races:

- Two programs touch it, unless all their accesses are atomic, or one releases its access by an
  atomic operation, and the other acquires that by one of the same word before its own access.
- One program touches it twice with no `tl.debug_barrier` between. Which thread does what is the
  compiler's choice: a scalar, or an element of a tensor smaller than the program, is loaded by many
  threads and stored by one, and loads and stores of one tensor may be laid out differently. Triton
  puts barriers around shared memory only, and a reduction within warps has none. Two cases are no
  race: two scalar stores (both are thread 0's), and the kernels of `IN_PLACE`.
- Two lanes of one store put different values there.

Stores of one and the same value do not race.

And every address must lie in a tensor that the kernel was given.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton
from torch import Tensor
from triton._C.libtriton.ir import MEM_SEMANTIC, MEM_SYNC_SCOPE
from triton.runtime import interpreter

from tests.kernels.interpreter.race_rules import Access, Launch, Race, find_races, needs_barrier

_TRITON = str(Path(triton.__file__).parent)
_HERE = tuple(str(Path(__file__).with_name(name)) for name in ("races.py", "values.py"))
_memory = interpreter._interpreter


def short(path: Path) -> str:
    """A file and its folder: kernels of different ops are all called `kernel.py`."""
    return "/".join(path.parts[-2:])


def place() -> tuple[str, str, int]:
    """Function, file with its folder, and line of the kernel that is running."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith((_TRITON, *_HERE)):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_name, short(Path(frame.f_code.co_filename)), frame.f_lineno


@dataclass
class Watch:
    """Writes down what kernels do, launch by launch, and raises `Race`."""

    orders: bool = False  # launches of several programs run in three orders
    try_without_barriers: bool = False  # fills `barriers`
    kernels: Counter[str] = field(default_factory=Counter)  # launches by kernel
    reordered: set[str] = field(default_factory=set)  # kernels that ran in other orders
    barriers: dict[tuple[str, int], bool] = field(default_factory=dict)  # whether it is needed
    _launch: Launch | None = None
    _order: list[tuple[int, ...]] | None = None
    _undo: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def launch(self, run: Callable[[], None], kernel: str, grid: Any, args: dict[str, Any]) -> None:
        self.kernels[kernel] += 1
        first = self._record(run, kernel, args)
        find_races(first)
        if self.try_without_barriers:
            for barrier in {place for _, place in first.barriers}:
                needed = self.barriers.get(barrier, False)
                self.barriers[barrier] = needed or needs_barrier(first, barrier)
        programs = _programs(grid)
        if self.orders and len(programs) > 1:
            self.reordered.add(kernel)
            self._in_other_orders(run, first, programs, args)

    def _in_other_orders(
        self,
        run: Callable[[], None],
        first: Launch,
        programs: list[tuple[int, ...]],
        args: dict[str, Any],
    ) -> None:
        written, kernel = first.written, first.kernel
        wanted = _bytes_at(written)
        for order in (programs[::-1], random.Random(0).sample(programs, len(programs))):
            for addresses, values in reversed(self._undo):
                _memory.store(addresses, values, np.ones(addresses.shape, bool))
            last = self._record(run, kernel, args, order)
            if not np.array_equal(last.written, written):
                raise Race(f"{kernel} stores to other places in another order of its programs")
            wrong = np.flatnonzero(_bytes_at(written) != wanted)
            if wrong.size:
                where = first.name(int(written[wrong[0]]))
                raise Race(f"{kernel} leaves other values in {where} in another order of programs")

    def _record(
        self,
        run: Callable[[], None],
        kernel: str,
        args: dict[str, Any],
        order: list[tuple[int, ...]] | None = None,
    ) -> Launch:
        launch = Launch(kernel, _named_tensors(args))
        self._launch, self._order, self._undo = launch, order, []
        try:
            run()
        finally:
            self._launch = None
        return launch

    def begin_program(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """A program starts; returns which one it shall be."""
        assert self._launch is not None
        self._launch.begin_program()
        return index if self._order is None else self._order[self._launch.program]

    def barrier(self) -> None:
        assert self._launch is not None
        _, file, line = place()
        self._launch.barrier((file, line))

    def lanes_meet(self) -> None:
        assert self._launch is not None
        self._launch.torn.append(self._launch.accesses[-1])

    def touch(
        self,
        pointers: Any,
        mask: np.ndarray,
        value: np.ndarray | None = None,
        *,
        stores: bool,
        sem: Any = None,
        scope: Any = None,
    ) -> None:
        """`sem` and `scope` are those of an atomic operation."""
        launch = self._launch
        assert launch is not None
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        there = mask.astype(bool)  # the interpreter has masks of integers too
        there = np.broadcast_to(there, pointers.data.shape)
        first = pointers.data[there]
        if value is not None:
            value = np.broadcast_to(value, there.shape)[there].view(f"u{value.itemsize}")
        wide = scope in (MEM_SYNC_SCOPE.GPU, MEM_SYNC_SCOPE.SYSTEM)
        access = Access(
            stores, sem is not None, launch.program, launch.epoch, size, first, place(), value,
            releases=wide and sem in (MEM_SEMANTIC.RELEASE, MEM_SEMANTIC.ACQUIRE_RELEASE),
            acquires=wide and sem in (MEM_SEMANTIC.ACQUIRE, MEM_SEMANTIC.ACQUIRE_RELEASE),
        )  # fmt: skip
        launch.accesses.append(access)
        if stores and self.orders:
            kind = np.dtype(f"u{size}")
            zeros = np.zeros(first.shape, kind)
            old = _memory.load(first, np.ones(first.shape, bool), zeros, kind)
            self._undo.append((first, old))


def _programs(grid: Any) -> list[tuple[int, ...]]:
    x, y, z = (*grid, 1, 1)[:3]
    return [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]


def _named_tensors(args: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in args.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif hasattr(value, "_asdict"):
            inner = _named_tensors(value._asdict())
            found |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
    return found


def _bytes_at(addresses: np.ndarray) -> np.ndarray:
    zeros = np.zeros(addresses.shape, np.uint8)
    lanes = np.ones(addresses.shape, bool)
    return np.asarray(_memory.load(addresses, lanes, zeros, np.dtype(np.uint8)))


def _lanes_agree(pointers: Any, value: Any, mask: Any) -> bool:
    """True if what lies there after a store is what every lane stored."""
    if value.data.size == 1:
        return True
    stored = np.ascontiguousarray(value.data)
    found = _memory.load(pointers.data, mask.data, stored, stored.dtype)
    bits = np.dtype(f"u{stored.itemsize}")
    return np.array_equal(np.ascontiguousarray(found).view(bits), stored.view(bits))


@contextmanager
def watching(*, orders: bool = False, try_without_barriers: bool = False) -> Iterator[Watch]:
    """Every launch in the interpreter is watched; with `orders` its programs run in three orders.

    Raises:
        Race: from the launch in which it is found.
    """
    watch = Watch(orders, try_without_barriers)
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    call = executor.__call__

    def launched(self: Any, *args: Any, **options: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | options
        watch.launch(lambda: call(self, *args, **options), self.fn.__name__, self.grid, named)

    plain = {name: getattr(builder, name) for name in _METHODS}
    try:
        executor.__call__ = launched
        for name, method in _watched(watch, plain).items():
            setattr(builder, name, method)
        yield watch
    finally:
        executor.__call__ = call
        for name, method in plain.items():
            setattr(builder, name, method)


_METHODS = (
    *("set_grid_idx", "create_barrier"),
    *("create_masked_load", "create_masked_store"),
    *("create_atomic_rmw", "create_atomic_cas"),
)


def _watched(watch: Watch, plain: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """What the interpreter does for a kernel, told to the watch."""

    def begun(self: Any, *index: int) -> None:
        plain["set_grid_idx"](self, *watch.begin_program(index))

    def barrier(self: Any) -> None:
        watch.barrier()
        plain["create_barrier"](self)

    def loaded(self: Any, ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        watch.touch(ptrs, mask.data, stores=False)
        return plain["create_masked_load"](self, ptrs, mask, *rest, **options)

    def stored(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> None:
        watch.touch(ptrs, mask.data, value.data, stores=True)
        plain["create_masked_store"](self, ptrs, value, mask, *rest, **options)
        if not _lanes_agree(ptrs, value, mask):
            watch.lanes_meet()

    def atomic_rmw(
        self: Any, kind: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any
    ) -> Any:
        watch.touch(ptr, mask.data, stores=True, sem=sem, scope=scope)
        return plain["create_atomic_rmw"](self, kind, ptr, value, mask, sem, scope)

    def atomic_cas(self: Any, ptr: Any, old: Any, new: Any, sem: Any, scope: Any) -> Any:
        watch.touch(ptr, np.ones(ptr.data.shape, bool), stores=True, sem=sem, scope=scope)
        return plain["create_atomic_cas"](self, ptr, old, new, sem, scope)

    methods = (begun, barrier, loaded, stored, atomic_rmw, atomic_cas)
    return dict(zip(_METHODS, methods, strict=True))
