"""Cheap access to columns of the slot state from plain Python.

The control twins work on a few integers a slot; reading and writing them one tensor element at a
time would cost more than a small model's forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def host(tensor: Tensor) -> np.ndarray:
    """The tensor for reading: the same memory on a CPU, a copy elsewhere."""
    return np.asarray(tensor.cpu())


def write(tensor: Tensor, values: Sequence[float]) -> None:
    """Overwrites the first `len(values)` elements in one copy."""
    tensor[: len(values)] = torch.tensor(values, dtype=tensor.dtype)


def write_at(tensor: Tensor, index: Tensor, values: Sequence[float]) -> None:
    """Overwrites the elements at `index` (int64) in one copy."""
    tensor[index] = torch.tensor(values, dtype=tensor.dtype, device=tensor.device)
