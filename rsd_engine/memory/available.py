"""How much memory the engine may take, and one clear line where it is not enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

# What PyTorch's allocator for CPUs says, on Linux and on Windows; it has no error of its own.
_CPU_IS_FULL = ("allocate memory", "not enough memory")


class _Files(NamedTuple):
    """Where a version of control groups keeps a limit, and the names of what counts against it."""

    mount: str
    limit: str
    usage: str
    inactive_file: str  # in memory.stat: page cache that is given back first


_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def available_bytes(device: torch.device, gpu_memory_utilization: float) -> int:
    """Memory that an engine on `device` may take now.

    Args:
        device: a GPU: what is free of the share that the engine may use. A CPU: see
            `host_available_bytes`.
        gpu_memory_utilization: the share of a GPU's memory, in (0, 1].
    """
    if device.type != "cuda":
        return host_available_bytes()
    free, total = torch.cuda.mem_get_info(device)
    # Blocks that an earlier engine of this process gave back to PyTorch, not to the device.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int(free + kept - (1 - gpu_memory_utilization) * total))


def host_available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can get without swapping, page cache included.

    The kernel's estimate (MemAvailable of /proc/meminfo), within the limits of the control groups
    (version 1 or 2) that the process is in: a container's limit is one. Without /proc, all memory
    of the machine.

    Args:
        root: of the file system that /proc and /sys are in.
    """
    found = _mem_available(root)
    if found is None:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([found, *_left_in_groups(root)]))


def _mem_available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left in each control group that this process is in, where the group has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            files = _V2
        elif "memory" in controllers.split(","):
            files = _V1
        else:
            continue
        top = root / files.mount
        # In a container the path may be that of the host, and the limit lies at the top.
        group = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        for folder in (group, *group.parents):
            left = _left_in(folder, files)
            if left is not None:
                yield left
            if folder == top:
                break


def _left_in(folder: Path, files: _Files) -> int | None:
    try:
        limit = (folder / files.limit).read_text().strip()
        if limit == "max":
            return None
        usage = int((folder / files.usage).read_text())
        stat = dict(line.split() for line in _lines(folder / "memory.stat"))
        return int(limit) - usage + int(stat.get(files.inactive_file, 0))
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


@contextmanager
def told_when_full(what: str, num_bytes: int, device: torch.device, advice: str) -> Iterator[None]:
    """Turns any error of a full memory into a MemoryError of one line.

    Args:
        what: what was being allocated, such as "the KV pages".
        num_bytes: how much that is.
        device: where.
        advice: what the user can change.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_full(error):
            raise
        left = megabytes(available_bytes(device, 1.0))
        raise MemoryError(
            f"{what}: {megabytes(num_bytes)} of memory are needed and {left} are available on "
            f"{device}; {advice}"
        ) from error


def _is_full(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _CPU_IS_FULL)


def megabytes(num_bytes: float) -> str:
    """A size for people, in MB or GB of 10^6 or 10^9 bytes."""
    if num_bytes >= 1e10:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.1f} MB"
