"""Which accesses to memory race: see `tests.kernels.interpreter.races`, which writes them down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

# They store to where they loaded from, by the same pointers. A projection adds a residual: what is
# stored depends on that element alone, and one thread stores it. A norm and a rotation also depend
# on other elements of the row, but no two warps load one and the same (8 elements a thread, or one
# warp: `test_no_two_warps_hold_an_element_of_a_norm`), so each warp has loaded its own before it
# adds, and what goes from warp to warp goes past a barrier of Triton's.
IN_PLACE = {
    "_projection_kernel", "_grouped_rows_kernel", "_rms_norm_kernel", "_rope_kv_write_kernel",
}  # fmt: skip


class Race(AssertionError):
    """What a device may do otherwise than the interpreter."""


@dataclass(frozen=True)
class Access:
    """One load, store or atomic operation of one program."""

    stores: bool
    atomic: bool
    program: int
    epoch: int  # barriers of the program before it
    size: int  # bytes of an element
    first: np.ndarray  # [elements] uint64 addresses of those that it touches
    place: tuple[str, str, int]  # function, file, line
    value: np.ndarray | None = None  # [elements] what a store puts there, as bits
    releases: bool = False  # what comes before it is seen by who acquires what it leaves
    acquires: bool = False

    def __str__(self) -> str:
        function, file, line = self.place
        what = "atomic operation" if self.atomic else "store" if self.stores else "load"
        return f"the {what} in {function} ({file}:{line})"


@dataclass
class Launch:
    """What the programs of one launch have done so far."""

    kernel: str
    tensors: dict[str, Tensor]
    accesses: list[Access] = field(default_factory=list)
    barriers: list[tuple[int, tuple[str, int]]] = field(default_factory=list)  # program; file, line
    torn: list[Access] = field(default_factory=list)  # stores of different values by two lanes
    program: int = -1
    epoch: int = 0

    def begin_program(self) -> None:
        self.program, self.epoch = self.program + 1, 0

    def barrier(self, place: tuple[str, int]) -> None:
        self.barriers.append((self.program, place))
        self.epoch += 1

    @property
    def written(self) -> np.ndarray:
        """Addresses of all bytes stored to, in order."""
        parts = [_bytes(access.first, access.size) for access in self.accesses if access.stores]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))

    def name(self, address: int) -> str:
        """The tensor that holds an address."""
        for name, tensor in self.tensors.items():
            first, end = _extent(tensor)
            if first <= address < end:
                return f"{name}, element {(address - first) // tensor.element_size()}"
        return "no tensor"


def _bytes(first: np.ndarray, size: int) -> np.ndarray:
    return (first[:, None] + np.arange(size, dtype=np.uint64)).reshape(-1)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address of a view and the end of its last element."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def find_races(launch: Launch) -> None:
    """Raises `Race` for the first race found, or for an address outside of all tensors."""
    if launch.torn:
        raise Race(f"{launch.kernel}: two lanes of {launch.torn[0]} store different values")
    if launch.accesses:
        _check_bounds(launch)
        byte, op = _contended(launch)
        if byte.size:
            _check_between_programs(launch, byte, op, _epochs(launch))
            _check_within_programs(launch, byte, op, _epochs(launch))


def needs_barrier(launch: Launch, place: tuple[str, int]) -> bool:
    """True if the launch, which has no race, would have one without the barrier of that line."""
    byte, op = _contended(launch)
    epoch = _epochs(launch, without=place)
    try:
        _check_between_programs(launch, byte, op, epoch)
        _check_within_programs(launch, byte, op, epoch)
    except Race:
        return True
    return False


def _epochs(launch: Launch, without: tuple[str, int] | None = None) -> np.ndarray:
    """Barriers of its program before each access."""
    epoch = np.array([access.epoch for access in launch.accesses])
    if without is None:
        return epoch
    program = np.array([access.program for access in launch.accesses])
    for which in {which for which, place in launch.barriers if place == without}:
        places = [place for its, place in launch.barriers if its == which]
        kept = np.cumsum([0, *(place != without for place in places)])
        epoch[program == which] = kept[epoch[program == which]]
    return epoch


def _check_bounds(launch: Launch) -> None:
    extents = sorted(_extent(tensor) for tensor in launch.tensors.values())
    first = np.array([extent[0] for extent in extents], np.uint64)
    end = np.maximum.accumulate(np.array([extent[1] for extent in extents], np.uint64))
    at = np.concatenate([access.first for access in launch.accesses])
    tensor = np.searchsorted(first, at, side="right") - 1
    outside = np.flatnonzero((tensor < 0) | (at >= end[tensor]))
    if outside.size:
        ends = np.cumsum([access.first.size for access in launch.accesses])
        access = launch.accesses[int(np.searchsorted(ends, outside[0], side="right"))]
        raise Race(f"{launch.kernel}: {access} is outside of every tensor it was given")


def _contended(launch: Launch) -> tuple[np.ndarray, np.ndarray]:
    """Every byte that an access touches and any access stores to; which access it is."""
    written, accesses = launch.written, launch.accesses
    at = np.concatenate([access.first for access in accesses])
    op = np.repeat(np.arange(len(accesses)), [access.first.size for access in accesses])
    size = np.array([access.size for access in accesses])[op]
    begin = np.searchsorted(written, at)
    end = np.searchsorted(written, at + size.astype(np.uint64))
    at, op, size = at[begin < end], op[begin < end], size[begin < end]
    parts = [(_bytes(at[size == n], n), np.repeat(op[size == n], n)) for n in np.unique(size)]
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _check_between_programs(
    launch: Launch, byte: np.ndarray, op: np.ndarray, epoch: np.ndarray
) -> None:
    """Where programs meet, nothing but atomic operations, unless these put the rest in order."""
    accesses = launch.accesses
    order = np.lexsort((op, byte))
    byte, op = byte[order], op[order]
    new = np.diff(byte, prepend=0) != 0
    begin, group = np.flatnonzero(new), np.cumsum(new) - 1
    program = np.array([access.program for access in accesses])
    atomic = np.array([access.atomic for access in accesses])
    stores = np.array([access.stores for access in accesses])
    meet = np.minimum.reduceat(program[op], begin) != np.maximum.reduceat(program[op], begin)
    kept = (meet & ~np.logical_and.reduceat(atomic[op], begin))[group]

    def conflict(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (program[i] != program[j]) & (stores[i] | stores[j]) & ~(atomic[i] & atomic[j])

    for one, other in _pairs(op[kept], group[kept], conflict):
        if not _in_order(accesses, one, other, epoch):
            who = f"in programs {program[one]} and {program[other]}"
            raise Race(_describe(launch, accesses[one], accesses[other], who))


def _in_order(accesses: list[Access], one: int, other: int, epoch: np.ndarray) -> bool:
    """True if the program of `one` releases it, and that of `other` acquires that before `other`.

    One thread releases: what the others did counts if a barrier is between. One thread acquires,
    too; if the operation is of a scalar, Triton hands its result to the others past a barrier.
    """
    releases = [
        r
        for r in range(one, other + 1)
        if accesses[r].releases
        and accesses[r].program == accesses[one].program
        and (r == one or epoch[one] < epoch[r])
    ]
    return any(
        np.intersect1d(accesses[r].first, accesses[a].first).size > 0
        for r in releases
        for a in range(r + 1, other + 1)
        if accesses[a].acquires
        and accesses[a].program == accesses[other].program
        and (a == other or accesses[a].first.size == 1 or epoch[a] < epoch[other])
    )


def _check_within_programs(
    launch: Launch, byte: np.ndarray, op: np.ndarray, epoch: np.ndarray
) -> None:
    """Every two accesses of a byte between the same two barriers of a program."""
    accesses = launch.accesses
    stores = np.array([access.stores for access in accesses])
    program = np.array([access.program for access in accesses])
    order = np.lexsort((op, epoch[op], program[op], byte))
    byte, op = byte[order], op[order]
    new = np.diff(byte, prepend=0) != 0
    new |= (np.diff(program[op], prepend=-1) != 0) | (np.diff(epoch[op], prepend=-1) != 0)
    group = np.cumsum(new) - 1
    kept = np.logical_or.reduceat(stores[op], np.flatnonzero(new))[group]

    def conflict(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (stores[i] | stores[j]) & (i != j)

    for one, other in _pairs(op[kept], group[kept], conflict):
        if not _allowed(launch.kernel, accesses[one], accesses[other]):
            who = "in one program, with no barrier between"
            raise Race(_describe(launch, accesses[one], accesses[other], who))


def _pairs(
    op: np.ndarray, group: np.ndarray, conflict: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[int, int]]:
    """Every two accesses in conflict of one group, which lie side by side."""
    for apart in range(1, len(op)):
        i, j = op[:-apart], op[apart:]
        same = group[:-apart] == group[apart:]
        if not same.any():
            return
        bad = same & conflict(i, j)
        for one, other in np.unique(np.stack((i[bad], j[bad]), 1), axis=0):
            yield int(one), int(other)


def _describe(launch: Launch, one: Access, other: Access, who: str) -> str:
    address = np.intersect1d(_bytes(one.first, one.size), _bytes(other.first, other.size))[0]
    return f"{launch.kernel}: {launch.name(int(address))}: {one} and {other} {who}"


def _allowed(kernel: str, one: Access, other: Access) -> bool:
    if one.stores and other.stores:
        return one.first.size == other.first.size == 1 or _agree(one, other)
    in_place = kernel in IN_PLACE and not one.stores
    return in_place and np.array_equal(one.first, other.first)


def _agree(one: Access, other: Access) -> bool:
    """True if two stores put the same values where they meet."""
    if one.value is None or other.value is None or one.size != other.size:
        return False
    _, i, j = np.intersect1d(one.first, other.first, return_indices=True)
    return np.array_equal(one.value[i], other.value[j])
