"""CUDA tensors without memory, so that what surrounds the kernels runs on any machine.

PyTorch's fake tensors know their device, and whoever asks where a tensor is takes the way of a GPU.
What their build for CPUs cannot do with them is done here: copies to the device, slices, and
products into given outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rsd_kernels.launch import Launch

DEVICE = torch.device("cuda")
MEMORY = 141 * 2**30  # bytes of an H200


@dataclass
class Work:
    """What was given to the device, and what was taken from its memory."""

    launches: list[Launch] = field(default_factory=list)
    products: list[tuple[int, ...]] = field(default_factory=list)  # shapes of what cuBLAS gave
    allocations: int = 0


@contextmanager
def memoryless_cuda(free_memory: int = MEMORY) -> Iterator[Work]:
    """Tensors made within are fake; launches and products are checked and noted, and not run.

    Args:
        free_memory: bytes that the device says are free, of `MEMORY`.
    """
    work = Work()
    device: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132),
        "mem_get_info": lambda device=None: (free_memory, MEMORY),
        "synchronize": lambda device=None: None,
    }
    torch._C._ensureCUDADeviceGuardSet()  # what FakeTensorMode does where there is no GPU
    with ExitStack() as stack:
        for name, answer in device.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        stack.enter_context(mock.patch.object(Launch, "run", lambda self: _launch(self, work)))
        # A launcher that looks at an address gets 0, which is aligned.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for mode in (FakeTensorMode(), _OnDevice(work), _Allocations(work)):
            stack.enter_context(mode)
        yield work


class _Generator(torch.Generator):
    """Of a device that this build does not know."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


def _launch(launch: Launch, work: Work) -> None:
    for name, value in launch.all_args.items():
        for item in value if isinstance(value, tuple) else (value,):
            on_device = not isinstance(item, Tensor) or item.is_cuda
            assert on_device, f"{launch.kernel.__name__}: {name} is on {item.device}"
    if 0 not in launch.grid:
        work.launches.append(launch)


class _OnDevice(TorchFunctionMode):
    """What goes to a device, and what a device does."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor:
            return _known(args[0], function(args[0], dtype=kwargs.get("dtype")), **kwargs)
        if function is Tensor.to and not args[0].is_cuda and _goes_to_device(*args[1:], **kwargs):
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=DEVICE)
        if function is Tensor.copy_ and args[0].is_cuda:
            return _copied(args[0], args[1])
        if function is Tensor.contiguous and args[0].is_cuda and not args[0].is_contiguous():
            return args[0].clone(memory_format=torch.contiguous_format)
        if function is Tensor.__getitem__ and args[0].is_cuda and _is_plain(args[1]):
            return _sliced(args[0], args[1])
        if function is Tensor.__setitem__ and args[0].is_cuda:
            return None
        if function in (torch.mm, torch.addmm):
            return self._product(function, args, kwargs["out"])
        return function(*args, **kwargs)

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


def _known(values: Any, tensor: Tensor, device: Any = "cpu", **_: Any) -> Tensor:
    """A tensor whose values are known: `tolist` gives them, as it would on a GPU."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device or "cpu")
    made.tolist = lambda: list(values)  # type: ignore[method-assign]
    return made


def _copied(target: Tensor, source: Tensor) -> Tensor:
    assert torch.broadcast_shapes(source.shape, target.shape) == target.shape
    if "tolist" in vars(source):
        target.tolist = source.tolist  # type: ignore[method-assign]
    return target


def _goes_to_device(*args: Any, **kwargs: Any) -> bool:
    named = [value for value in (*args, *kwargs.values()) if isinstance(value, str | torch.device)]
    return any(torch.device(name).type == DEVICE.type for name in named)


def _meta(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")


def _is_plain(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, int | slice) for part in parts)


def _sliced(tensor: Tensor, index: Any) -> Tensor:
    """tensor[index], for slices and whole numbers."""
    dim = 0
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
        dim += 1
    return tensor
