"""The time that a tick should take, by kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rsd_engine.roofline.formats import WeightFormat
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.launch_times import Fetch, LaunchCost, Load, fetch_of
from rsd_engine.roofline.ticks import Tick
from rsd_kernels.launch import Launch


@dataclass(frozen=True)
class KernelTime:
    """All launches of a tick of one kernel on one grid.

    Attributes:
        name: of the kernel, as a profiler shows it.
        weight: rows and columns of the matrix that it reads, if it reads one.
        grid: its programs.
        launches: how many there are.
        num_bytes: that one reads.
        seconds: of one, expected.
    """

    name: str
    weight: tuple[int, ...]
    grid: tuple[int, ...]
    launches: int
    num_bytes: float
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
        return sum(kernel.launches * kernel.num_bytes for kernel in self.forward)

    def share(self, device: Device) -> float:
        """Of the bandwidth, in the pass."""
        return self.num_bytes / device.bandwidth / self.forward_seconds


def tick_time(
    tick: Tick,
    load: Load,
    device: Device,
    *,
    early: bool = False,
    weights: WeightFormat | None = None,
) -> TickTime:
    """The expected time of a tick.

    Args:
        tick: what it launches.
        load: what runs.
        device: with the bandwidth that the best read reaches.
        early: whether kernels that can start early do, on a device that knows this.
        weights: what the matrices of layers would be held in, by kernels that are launched as those
            of plain weights are; None: they are plain.

    Raises:
        ValueError: there are no products of such weights.
    """
    early = early and device.starts_early
    control = [launch for launches in tick.control.values() for launch in launches]
    times = _kernel_times(control, load, device, early=early, formats={})
    if tick.num_arms:
        cost = LaunchCost(num_bytes=0.0, serial_reads=2, programs=1, warps=1, early=False)
        times.append(KernelTime("arm", (), (1,), tick.num_arms, 0.0, cost.seconds(device)))
    formats = dict.fromkeys(tick.layers, weights) if weights else {}
    forward = _kernel_times(tick.forward, load, device, early=early, formats=formats)
    return TickTime(forward, times)


def _kernel_times(
    launches: Sequence[Launch],
    load: Load,
    device: Device,
    *,
    early: bool,
    formats: Mapping[int, WeightFormat],  # of matrices that are not plain, by their ids
) -> list[KernelTime]:
    """The kernels in the order of their first launches."""
    made = [replace(launch, overlap=early and launch.has_wait) for launch in launches]
    counts: dict[tuple[str, tuple[int, ...], tuple[int, ...], LaunchCost], int] = {}
    for launch, cost in zip(made, _costs(made, load, formats), strict=True):
        weight = launch.args.get("weight")
        shape = tuple(weight.shape) if isinstance(weight, Tensor) and weight.dim() == 2 else ()
        key = (launch.kernel.__name__, shape, launch.grid, cost)
        counts[key] = counts.get(key, 0) + 1
    return [
        KernelTime(name, shape, grid, number, cost.num_bytes, cost.seconds(device))
        for (name, shape, grid, cost), number in counts.items()
    ]


def _costs(
    launches: Sequence[Launch], load: Load, formats: Mapping[int, WeightFormat]
) -> Iterator[LaunchCost]:
    """In order, since a launch may fetch the beginning of a later one's weight (`ahead`)."""
    fetched: dict[int, tuple[Fetch, ...]] = {}  # by the id of the matrix
    for launch in launches:
        matrix = id(launch.args.get("weight"))
        cost = LaunchCost.of(launch, load, formats.get(matrix))
        yield replace(cost, fetched=fetched.pop(matrix, ()))
        if found := fetch_of(launch):
            whole, fetch = found
            fetched[whole] = (*fetched.get(whole, ()), fetch)
