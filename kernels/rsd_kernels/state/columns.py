"""Cheap access to columns of the slot state from plain Python.

The control twins work on a few integers a slot. A tensor operation costs microseconds whatever its
size, numpy on the same memory a tenth of that, and a small model's whole forward is not much more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_VIEW = "_rsd_host_view"


def host(tensor: Tensor) -> np.ndarray:
    """The tensor for reading: the same memory on a CPU, a copy elsewhere.

    State never moves, so on a CPU the view is made once and stays with the tensor; it looks at an
    alias of the tensor, so that neither keeps the other alive.
    """
    view: np.ndarray | None = getattr(tensor, _VIEW, None)
    if view is not None:
        return view
    if tensor.device.type != "cpu":
        return tensor.cpu().numpy()
    view = tensor.detach().numpy()
    setattr(tensor, _VIEW, view)
    return view


def number(tensor: Tensor, index: Any = 0) -> int:
    """One integer of a tensor."""
    return int(host(tensor)[index])


def write(tensor: Tensor, values: Sequence[float] | np.ndarray) -> None:
    """Overwrites the first `len(values)` elements in one copy."""
    write_at(tensor, slice(len(values)), values)


def write_at(tensor: Tensor, index: Any, values: float | Sequence[float] | np.ndarray) -> None:
    """Overwrites the elements at `index` (as in numpy: lists, slices, tuples) in one copy."""
    if hasattr(tensor, _VIEW) or tensor.device.type == "cpu":
        host(tensor)[index] = values
    else:
        tensor[index] = torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)


def add_at(tensor: Tensor, index: Any, amounts: float | np.ndarray) -> None:
    """Adds to the elements at `index`, which names each of them once."""
    write_at(tensor, index, host(tensor)[index] + amounts)
