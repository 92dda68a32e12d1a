"""Which device the engine runs on."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: it is neither a CPU nor a usable CUDA device, or not the current one.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: no usable CUDA device here; use 'cpu' or 'auto'")
    if found.type == "cuda":
        _check_index(device, found.index)
    return found


def _check_index(device: str | torch.device, index: int | None) -> None:
    """Kernels go to the current device of whichever thread launches them: one device a process."""
    count, current = torch.cuda.device_count(), torch.cuda.current_device()
    if (index or 0) >= count:
        raise ValueError(
            f"device={device!r}: this machine has {count} CUDA devices, counted from 0"
        )
    if index not in (None, current):
        raise ValueError(
            f"device={device!r}: kernels are launched on the current device, cuda:{current}; set "
            f"CUDA_VISIBLE_DEVICES={index} before the process starts and use 'cuda'"
        )
