"""The time that a launch should take, so that a measured one has something to be held against.

A launch takes the gap before it, then reads that follow one another because each says where the
next one is, then its bytes over the bandwidth. Where a weight is held in few bits, plain cores
unpack it meanwhile, which may take longer. A model: no constant here was measured with these
kernels. What a launch reads is told by the names of its arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rsd_engine.roofline.formats import WeightFormat
from rsd_engine.roofline.gpus import Device
from rsd_kernels.ahead import LINE_BYTES
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
# Of reading that can be under way when a launch ends: so much of what it fetches for a later one
# comes while the next launch starts. What is more makes it end later. An estimate: the latency of
# a busy memory, less than any launch takes to start. Where the programs of a launch meet at its
# end, memory is free for as long as the last one takes to find what the others have left.
IN_FLIGHT = 0.9e-6
# Warps that a multiprocessor holds at a time, by their registers: 65,536, about 128 a thread.
RESIDENT_WARPS = 16
# A multiprocessor whose neighbours are idle reads so many times its share. An estimate.
LONE_SPEEDUP = 2.0
# Instructions that a multiprocessor issues in a second, counted for each thread: four schedulers of
# 32 threads, at the 1.75 GHz that an H100 holds under load.
ISSUE_RATE = 4 * 32 * 1.75e9
# And those that a norm adds for a weight of few bits, whose products bring x again for each tile:
# counted as in `WeightFormat`, 1.3 (int8), 1.7 (int4) and 2.3 (fp8) of gate and up.
NORM_INSTRUCTIONS = 1.7

# Arguments that are read whole, once.
_STREAMED = ("weight", "bias", "norm")
# Reads that must come back before the address of the next one is known, by the argument that they
# begin with: a page is found by way of the row's sequence and the page table of its slot.
_SERIAL_READS = {"token": 1, "position": 1, "row_end": 1, "page_table": 2, "state": 3}
# And by a counter of the programs that have arrived, alone or in a bundle of arguments: the last
# one asks it, then reads what the others have left.
_COUNTER, _MEETING_READS = "arrived", 2


@dataclass(frozen=True)
class Load:
    """What runs: sequences that write one token each, and the tokens that each of them holds."""

    num_seqs: int
    context: int


class Fetch(NamedTuple):
    """What a launch asks the cache for, for a later one.

    Attributes:
        num_bytes: asked for.
        seconds: in which memory has nothing else to do.
    """

    num_bytes: float
    seconds: float


@dataclass(frozen=True)
class LaunchCost:
    """What a launch asks of a device.

    Attributes:
        num_bytes: read from memory; what the kernel before has written comes from the cache.
        serial_reads: one after the other, before or between these.
        programs: that share the bytes.
        warps: of a program.
        early: whether it starts while the kernel before it runs.
        fetched: of `num_bytes`, those that earlier launches have asked the cache for.
        instructions: of plain cores, to unpack weights of few bits; not counted where weights are
            plain, for there it is never these that take the time.
    """

    num_bytes: float
    serial_reads: int
    programs: int
    warps: int
    early: bool
    fetched: tuple[Fetch, ...] = ()
    instructions: float = 0.0

    @classmethod
    def of(cls, launch: Launch, load: Load, weights: WeightFormat | None = None) -> LaunchCost:
        """The cost of a launch with this load.

        Args:
            launch: of any kernel.
            load: what runs.
            weights: what its matrix would be held in, if not in the elements that it has.

        Raises:
            ValueError: there are no products of such weights.
        """
        return cls(
            num_bytes=_num_bytes(launch, load) - (_bytes_saved(launch, weights) if weights else 0),
            instructions=_instructions(launch, weights) if weights else 0.0,
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
        bandwidth = LOOP_SHARE * device.bandwidth
        fetched = sum(min(fetch.num_bytes, fetch.seconds * bandwidth) for fetch in self.fetched)
        reading = max(0.0, self.num_bytes - fetched) / bandwidth
        issuing = self.instructions / (device.multiprocessors * ISSUE_RATE)
        each = max(reading, issuing) / self.programs
        last = self.programs % wave
        alone = each * device.multiprocessors / LONE_SPEEDUP
        return (self.programs - last) * each + (max(last * each, alone) if last else 0.0)


def fetch_of(launch: Launch) -> tuple[int, Fetch] | None:
    """Of which matrix, by its id, a launch fetches how much; None if it fetches nothing."""
    lines = launch.args.get("ahead_lines", 0)
    if not lines:
        return None
    matrix = launch.args["ahead"]
    whole = matrix if matrix._base is None else matrix._base  # it may begin in the middle
    seconds = IN_FLIGHT + (_MEETING_READS * SERIAL_READ if _meets(launch) else 0.0)
    return id(whole), Fetch(lines * LINE_BYTES, seconds)


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


def _bytes_saved(launch: Launch, weights: WeightFormat) -> float:
    matrix = launch.args["weight"]
    return float(matrix.nbytes - matrix.numel() * weights.bytes_per_parameter)


def _instructions(launch: Launch, weights: WeightFormat) -> float:
    """The same for 1 to 16 rows, which all go by tensor cores."""
    if weights.instructions is None:
        raise ValueError(f"no product on a GPU reads {weights.name}, which is expanded there")
    of_norm = NORM_INSTRUCTIONS if _has(launch, "norm") else 0.0
    return float(launch.args["weight"].numel() * (weights.instructions + of_norm))


def _serial_reads(launch: Launch) -> int:
    found = sum(number for name, number in _SERIAL_READS.items() if _has(launch, name))
    if launch.overlap and launch.args.get("SCHEDULED"):
        found = 0  # done before the wait for the previous kernel
    return 1 + found + (_MEETING_READS if _meets(launch) else 0)


def _meets(launch: Launch) -> bool:
    bundles = (value for value in launch.args.values() if isinstance(value, tuple))
    return _has(launch, _COUNTER) or any(hasattr(bundle, _COUNTER) for bundle in bundles)


def _has(launch: Launch, name: str) -> bool:
    value = launch.args.get(name)
    return isinstance(value, Tensor) or (isinstance(value, tuple) and name == "state")
