"""Device, versions, the cache of compiled kernels, and the read bandwidth of the memory.

python -m bench.gpu.machine [--dry-run]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu.kernel_cache import use_cache
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser, default_device
from rsd_engine import doctor
from rsd_engine.roofline.measured import read_bandwidth


def device_facts(device: torch.device) -> dict[str, Any]:
    """What the kernels' sizes depend on."""
    if device.type != "cuda":
        return {"device_type": device.type}
    found = torch.cuda.get_device_properties(device)
    return {
        "device_type": device.type,
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "memory_bytes": found.total_memory,
        "driver": report.driver(),
        "cuda": torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.machine", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    dry_run = parser.parse_args(arguments).dry_run
    if not dry_run and not torch.cuda.is_available():
        parser.error(NO_GPU)
    device = torch.device("cpu") if dry_run else default_device()
    print(doctor.report().text())
    found: dict[str, Any] = {"bench": "gpu.machine", **device_facts(device), "cache": use_cache()}
    report.print_json(found)  # in case the device does not answer
    found["bandwidth_bytes_per_second"] = read_bandwidth(device, 2**24 if dry_run else None)
    print(f"{found['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s read; cache: {found['cache']}")
    report.print_json(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
