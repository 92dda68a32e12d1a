"""The time that a launch should take, so that a measured one has something to be held against.

A launch takes the gap before it, then reads that follow one another because each says where the
next one is, then its bytes over the bandwidth. A model: no constant here was measured with these
kernels. What a launch reads is told by the names of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.ticks import Tick
from rsd_kernels.launch import Launch

# The share of the published bandwidth that the best read of much memory reaches; copies on H100 and
# H200 move about that.
READ_SHARE = 0.9
# Of that, what the loop of a product sustains. An estimate.
LOOP_SHARE = 0.95
# From the end of a kernel to the start of the next one in a replayed graph. Published for an H100:
# Spector et al., Look Ma, No Bubbles, Hazy Research, 2025.
GAP = 1.3e-6
# The same where the next kernel has started already: what the one before has written becomes
# visible, and is read from the L2 cache. An estimate.
EARLY_GAP = 0.7e-6
# A read that nothing overlaps with. About 480 cycles on an idle H100 (Luo et al., Benchmarking and
# Dissecting the Nvidia Hopper GPU Architecture, 2024); more where the rest of memory is busy.
SERIAL_READ = 0.5e-6
# Warps that a multiprocessor holds at a time, by their registers: 65,536, about 128 a thread.
RESIDENT_WARPS = 16
# A multiprocessor whose neighbours are idle reads so many times its share. An estimate.
LONE_SPEEDUP = 2.0

# Arguments that are read whole, once.
_STREAMED = ("weight", "bias", "norm")
# Reads that must come back before the address of the next one is known, by the argument that they
# begin with: the page table is found by way of the row's sequence and that one's slot.
_SERIAL_READS = {"token": 1, "position": 1, "row_end": 1, "page_table": 3, "state": 3}
# And by a counter of the programs that have arrived, alone or in a bundle of arguments: the last
# one asks it, then reads what the others have left.
_COUNTER, _MEETING_READS = "arrived", 2


@dataclass(frozen=True)
class Load:
    """What runs: sequences that write one token each, and the tokens that each of them holds."""

    num_seqs: int
    context: int


@dataclass(frozen=True)
class LaunchCost:
    """What a launch asks of a device.

    Attributes:
        num_bytes: read from memory; what the kernel before has written comes from the cache.
        serial_reads: one after the other, before or between these.
        programs: that share the bytes.
        warps: of a program.
        early: whether it starts while the kernel before it runs.
    """

    num_bytes: float
    serial_reads: int
    programs: int
    warps: int
    early: bool

    @classmethod
    def of(cls, launch: Launch, load: Load) -> LaunchCost:
        """The cost of a launch with this load."""
        return cls(
            num_bytes=_num_bytes(launch, load),
            serial_reads=_serial_reads(launch),
            programs=math.prod(launch.grid),
            warps=launch.num_warps,
            early=launch.overlap,
        )

    def seconds(self, device: Device) -> float:
        """The expected time, the gap before the launch included.

        Args:
            device: its bandwidth is that of the best read, not the published one.

        Raises:
            ValueError: the number of its multiprocessors is not known.
        """
        gap = EARLY_GAP if self.early else GAP
        return gap + self.serial_reads * SERIAL_READ + self._stream_seconds(device)

    def _stream_seconds(self, device: Device) -> float:
        """Programs run in waves; in the last one a multiprocessor may have little company."""
        if device.multiprocessors < 1:
            raise ValueError(f"the multiprocessors of {device.name} are not known")
        wave = device.multiprocessors * max(1, RESIDENT_WARPS // self.warps)
        each = self.num_bytes / self.programs / (LOOP_SHARE * device.bandwidth)
        last = self.programs % wave
        alone = each * device.multiprocessors / LONE_SPEEDUP
        return (self.programs - last) * each + (max(last * each, alone) if last else 0.0)


def _num_bytes(launch: Launch, load: Load) -> float:
    args = launch.args
    total = sum(args[name].nbytes for name in _STREAMED if _has(launch, name))
    if _has(launch, "page_table"):
        window = args.get("WINDOW") or load.context
        k_pages = args["k_pages"]
        row = k_pages.shape[2] * k_pages.shape[3] * k_pages.itemsize
        total += 2 * load.num_seqs * min(load.context, window) * row
    if _has(launch, "table"):  # of an embedding: rows are looked up
        total += args["out"].nbytes
    if _has(launch, "logits") and math.prod(launch.grid) > load.num_seqs:
        total += args["logits"].nbytes  # one program a place looks at what others made of them
    return float(total)


def _serial_reads(launch: Launch) -> int:
    bundles = (value for value in launch.args.values() if isinstance(value, tuple))
    meets = _has(launch, _COUNTER) or any(hasattr(bundle, _COUNTER) for bundle in bundles)
    found = sum(number for name, number in _SERIAL_READS.items() if _has(launch, name))
    if launch.overlap and launch.args.get("SCHEDULED"):
        found = 0  # done before the wait for the previous kernel
    return 1 + found + (_MEETING_READS if meets else 0)


def _has(launch: Launch, name: str) -> bool:
    value = launch.args.get(name)
    return isinstance(value, Tensor) or (isinstance(value, tuple) and name == "state")


@dataclass(frozen=True)
class KernelTime:
    """All launches of a tick of one kernel on one grid.

    Attributes:
        name: of the kernel, as a profiler shows it.
        weight: rows and columns of the matrix that it reads, if it reads one.
        grid: its programs.
        launches: how many there are.
        cost: of one.
        seconds: of one, expected.
    """

    name: str
    weight: tuple[int, ...]
    grid: tuple[int, ...]
    launches: int
    cost: LaunchCost
    seconds: float


@dataclass(frozen=True)
class TickTime:
    """A tick by kernel: the forward, and what decides what comes next."""

    forward: list[KernelTime]
    control: list[KernelTime]

    @property
    def forward_seconds(self) -> float:
        """Of the pass alone, which benchmarks of decoding measure."""
        return sum(kernel.launches * kernel.seconds for kernel in self.forward)

    @property
    def seconds(self) -> float:
        """Of the whole tick, on the device loop."""
        return self.forward_seconds + sum(k.launches * k.seconds for k in self.control)

    @property
    def num_bytes(self) -> float:
        """That the pass reads."""
        return sum(kernel.launches * kernel.cost.num_bytes for kernel in self.forward)

    def share(self, device: Device) -> float:
        """Of the bandwidth, in the pass."""
        return self.num_bytes / device.bandwidth / self.forward_seconds


def tick_time(tick: Tick, load: Load, device: Device, *, early: bool = False) -> TickTime:
    """The expected time of a tick.

    Args:
        tick: what it launches.
        load: what runs.
        device: with the bandwidth that the best read reaches.
        early: whether kernels that can start early do, on a device that knows this.
    """
    early = early and device.starts_early
    control = [launch for launches in tick.control.values() for launch in launches]
    times = _kernel_times(control, load, device, early=early)
    if tick.num_arms:
        cost = LaunchCost(num_bytes=0.0, serial_reads=2, programs=1, warps=1, early=False)
        times.append(KernelTime("arm", (), (1,), tick.num_arms, cost, cost.seconds(device)))
    return TickTime(_kernel_times(tick.forward, load, device, early=early), times)


def _kernel_times(
    launches: Sequence[Launch], load: Load, device: Device, *, early: bool
) -> list[KernelTime]:
    """The kernels in the order of their first launches."""
    counts: dict[tuple[str, tuple[int, ...], tuple[int, ...], LaunchCost], int] = {}
    for launch in launches:
        weight = launch.args.get("weight")
        shape = tuple(weight.shape) if isinstance(weight, Tensor) and weight.dim() == 2 else ()
        cost = LaunchCost.of(replace(launch, overlap=early and launch.has_wait), load)
        key = (launch.kernel.__name__, shape, launch.grid, cost)
        counts[key] = counts.get(key, 0) + 1
    return [
        KernelTime(name, shape, grid, number, cost, cost.seconds(device))
        for (name, shape, grid, cost), number in counts.items()
    ]
