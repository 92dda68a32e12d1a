"""What memory is available: page cache counts, containers' limits count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rsd_engine.memory import available
from rsd_engine.memory.available import available_bytes, host_available_bytes, told_when_full

CPU = torch.device("cpu")
MEMINFO = (
    "MemTotal: 24000000 kB\nMemFree: 300000 kB\nMemAvailable: 21000000 kB\nCached: 20000000 kB\n"
)
HOST = 21_000_000 * 1024
NO_LIMIT = "9223372036854771712"  # version 1 writes this


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group_v2(folder: str, limit: str, current: int, inactive: int) -> dict[str, str]:
    top = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {
        f"{top}/memory.max": f"{limit}\n",
        f"{top}/memory.current": f"{current}\n",
        f"{top}/memory.stat": f"anon 1000\ninactive_file {inactive}\nactive_file 77\n",
    }


def group_v1(folder: str, limit: str, usage: int, inactive: int) -> dict[str, str]:
    top = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{top}/memory.limit_in_bytes": f"{limit}\n",
        f"{top}/memory.usage_in_bytes": f"{usage}\n",
        f"{top}/memory.stat": f"inactive_file 5\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        # A page cache that fills the memory: 0.3 GB are free, 21 GB available.
        ({}, HOST),
        # The container's limit, less what cannot be given back.
        (
            {"proc/self/cgroup": "0::/\n", **group_v2("", "8000000000", 6_000_000_000, 5 * 10**9)},
            7_000_000_000,
        ),
        ({"proc/self/cgroup": "0::/a/b\n", **group_v2("a/b", "max", 6_000_000_000, 0)}, HOST),
        # The limit of a parent counts; so does the smallest of several.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                **group_v2("a/b", "4000000000", 1_000_000_000, 0),
                **group_v2("a", "2500000000", 1_500_000_000, 400_000_000),
            },
            1_400_000_000,
        ),
        # A path of the host, of which the container sees only the top.
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/docker/0123\n0::/\n",
                **group_v1("", "3000000000", 2_000_000_000, 500_000_000),
            },
            1_500_000_000,
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:memory:/job\n",
                **group_v1("job", "900000000", 100_000_000, 0),
                **group_v1("", NO_LIMIT, 5_000_000_000, 0),
            },
            800_000_000,
        ),
        ({"proc/self/cgroup": "0::/\n", **group_v2("", "1000", 5000, 0)}, 0),
        ({"proc/self/cgroup": "0::/\n", **group_v2("", "lots", 5000, 0)}, HOST),
        ({"proc/self/cgroup": "0::/../../x\n", **group_v2("x", "70000", 0, 0)}, 70_000),
    ],
)  # fmt: skip
def test_available_on_a_cpu(tmp_path: Path, files: dict[str, str], wanted: int) -> None:
    assert host_available_bytes(tree(tmp_path, files)) == wanted


def test_without_proc_it_is_all_memory(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host_available_bytes(tmp_path) == total


def test_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes(CPU, 0.1) <= total


def test_available_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 of 100 free, 5 kept by PyTorch; the engine may use 90."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 12)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 7)
    device = torch.device("cuda")
    assert available_bytes(device, 0.9) == 65
    assert available_bytes(device, 0.1) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
        RuntimeError("[enforce fail at x.cpp:9]\nDefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)  # fmt: skip
def test_a_full_memory_is_told_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "host_available_bytes", lambda: 3_000_000_000)
    with pytest.raises(MemoryError) as raised, told_when_full("pages", 10**10, CPU, "buy more"):
        raise error
    assert str(raised.value) == (
        "pages: 10.0 GB of memory are needed and 3.00 GB are available on cpu; buy more"
    )
    assert raised.value.__cause__ is error


def test_a_really_full_memory() -> None:
    with pytest.raises(MemoryError, match="pages: .* are needed"), \
            told_when_full("pages", 2**60, CPU, "buy more"):  # fmt: skip
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="no kernel image"), \
            told_when_full("pages", 1, CPU, "buy more"):  # fmt: skip
        raise RuntimeError("no kernel image is available")
