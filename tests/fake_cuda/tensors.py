"""CUDA tensors without memory, so that what surrounds the kernels runs on any machine.

PyTorch's fake tensors know their device, and whoever asks where a tensor is takes the way of a GPU.
What their build for CPUs cannot do with them is done here: slices, and products into given outputs.
For a process of its own, since it changes PyTorch for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rsd_kernels.launch import Launch

DEVICE = torch.device("cuda")


@dataclass
class Work:
    """What was given to the device, and what was taken from its memory."""

    launches: list[Launch] = field(default_factory=list)
    products: list[tuple[int, ...]] = field(default_factory=list)  # shapes of what cuBLAS gave
    allocations: int = 0


@contextmanager
def fake_cuda_tensors(patch: pytest.MonkeyPatch, work: Work) -> Iterator[None]:
    """Tensors made within are fake; launches and products are checked, and noted in `work`."""
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132),
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr(Launch, "run", lambda launch: _launch(launch, work))
    torch._C._ensureCUDADeviceGuardSet()  # what FakeTensorMode does where there is no GPU
    with FakeTensorMode(), _Products(work), _Allocations(work):
        yield


def _launch(launch: Launch, work: Work) -> None:
    for name, value in launch.all_args.items():
        for item in value if isinstance(value, tuple) else (value,):
            on_device = not isinstance(item, Tensor) or item.is_cuda
            assert on_device, f"{launch.kernel.__name__}: {name} is on {item.device}"
    work.launches.append(launch)


class _Products(TorchFunctionMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__getitem__ and args[0].is_cuda:
            return _sliced(args[0], args[1])
        if function in (torch.mm, torch.addmm):
            return self._product(function, args, kwargs["out"])
        return function(*args, **(kwargs or {}))

    def _product(self, function: Callable[..., Any], args: Any, out: Tensor) -> Tensor:
        """Its shapes and dtypes are those that PyTorch takes, without a new shape for `out`."""
        assert all(arg.is_cuda for arg in (*args, out) if isinstance(arg, Tensor))
        found = function(*map(_meta, args), out=_meta(out))
        assert (found.shape, found.dtype) == (out.shape, out.dtype)
        self._work.products.append(tuple(out.shape))
        return out


class _Allocations(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_cuda:
            read = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
            assert not read, f"{function} brings a tensor to the host"
        elif isinstance(result, Tensor) and not function.is_view:
            self._work.allocations += all(arg is not result for arg in args)
        return result


def _meta(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")


def _sliced(tensor: Tensor, index: Any) -> Tensor:
    """tensor[index], for slices of step 1 and whole numbers."""
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        start, stop, step = part.indices(tensor.shape[dim])
        assert step == 1
        tensor = tensor.narrow(dim, start, max(0, stop - start))
        dim += 1
    return tensor
