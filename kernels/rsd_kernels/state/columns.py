"""Allocate columns of the state, and read and write them cheaply from plain Python.

The twins of loop ops work on a few integers a slot. A tensor operation costs microseconds whatever
its size, numpy on the same memory a tenth of that; a small model's whole forward costs little more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

_VIEW = "_rsd_host_view"


def allocate(columns: type, sizes: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """A tensor of zeros for each field of a class, declared as Annotated[Tensor, dtype, *shape].

    A dimension of a shape is a number or a name in `sizes`.
    """
    return {
        name: torch.zeros(shape, dtype=dtype, device=device)
        for name, dtype, shape in _columns(columns, sizes)
    }


def num_bytes(columns: type, sizes: Mapping[str, int]) -> int:
    """What `allocate` would take."""
    return sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in _columns(columns, sizes))


def _columns(
    columns: type, sizes: Mapping[str, int]
) -> Iterator[tuple[str, torch.dtype, list[int]]]:
    """Name, dtype and shape of each field."""
    for name, column in get_type_hints(columns, include_extras=True).items():
        dtype, *dims = column.__metadata__
        yield name, dtype, [sizes[dim] if isinstance(dim, str) else dim for dim in dims]


def host(tensor: Tensor) -> np.ndarray:
    """The tensor for reading: the same memory on a CPU, a copy elsewhere.

    State never moves, so on a CPU the view is made once and kept with the tensor. It views an alias
    (`detach`), so that neither keeps the other alive.
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
    """Adds to the elements at `index`, which must not name one of them twice."""
    write_at(tensor, index, host(tensor)[index] + amounts)
