"""Words in the host's memory that the device reads and writes while a launch runs.

They are the log of decided steps, the end of what is written in it, and what the host asks for. On
a GPU they are pinned: kernels reach them over the bus, and the host reads them without waiting. A
read over the bus takes a kernel twice as long as one of its own memory, so it reads `host_request`
alone, and where the log ends in `log_head`. On a CPU they are the state's own tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.state.slots import SlotState


@dataclass(frozen=True)
class Mailbox:
    """The host's views; the state has the device's."""

    log: Tensor  # [log_words] int32
    log_end: Tensor  # [1] int32
    host_request: Tensor  # [1] int32
    log_head: Tensor  # [1] int32: the state's own, which the host may write between launches


def open_mailbox(state: SlotState) -> tuple[SlotState, Mailbox]:
    """Moves the mailbox to where both sides reach it; returns the new state and the host's views.

    Raises:
        RuntimeError: device and host do not share one address space.
    """
    names = ("log", "log_end", "host_request")
    if state.length.device.type == "cpu":
        views = {name: getattr(state, name) for name in names}
        return state, Mailbox(**views, log_head=state.log_head)
    device = state.length.device
    pinned = {
        name: torch.zeros_like(getattr(state, name), device="cpu", pin_memory=True)
        for name in names
    }
    views = {name: _device_view(tensor, device) for name, tensor in pinned.items()}
    return replace(state, **views), Mailbox(**pinned, log_head=state.log_head)


class _Words:
    """Pinned memory as a device array: in a unified address space both have one address."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor  # must live as long as the view
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": tuple(tensor.shape),
            "typestr": "<i4",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def _device_view(tensor: Tensor, device: torch.device) -> Tensor:
    view = torch.as_tensor(_Words(tensor), device=device)
    if view.data_ptr() != tensor.data_ptr():
        raise RuntimeError(f"{device} has no unified addressing; use another GPU or device='cpu'")
    return view
