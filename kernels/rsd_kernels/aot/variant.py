"""The compiled forms of kernels: what the machine code of a launch depends on.

Triton's just-in-time compiler makes another form for every combination of types, constants,
divisibility by 16 and options that it meets. A `Variant` is such a combination as plain data: found
from a launch by Triton's own rules, compared by its `key`, sent to other processes, compiled there,
and looked up in Triton's cache, all without a GPU.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import compile as triton_compile
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import create_function_from_signature, get_cache_invalidating_env_vars

from rsd_kernels.launch import Launch, interpreting

_WARP_SIZE = 32


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel, but for the device.

    Attributes:
        kernel: its module and name.
        signature: the type of every argument; of a named tuple of arguments, one of types.
        constants: constexprs, None, and integers equal to 1, by the place of the argument.
        attributes: what else is known of arguments (divisibility by 16), by their place.
        options: Triton's launch options.
    """

    kernel: tuple[str, str]
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """Equal for two launches exactly if one compiled kernel serves both."""
        return repr((self.kernel, self.signature, self.constants, self.attributes, self.options))

    @property
    def name(self) -> str:
        return self.kernel[1]

    def source(self) -> ASTSource:
        """What Triton compiles."""
        module, name = self.kernel
        kernel = getattr(importlib.import_module(module), name)
        return ASTSource(kernel, self.signature, self.constants, self.attributes)

    def compile(self, capability: int) -> Any:
        """The compiled kernel, from Triton's cache if it is there; 90 means sm_90."""
        target = _target(capability)
        return triton_compile(self.source(), target=target, options=self.options)

    def cache_folder(self, capability: int) -> str:
        """The name of the folder in Triton's cache in which this compiler looks for it."""
        return str(get_cache_manager(self._cache_hash(capability)).key)

    def is_cached(self, capability: int) -> bool:
        """Whether Triton's cache has it, all of its files included."""
        manager = get_cache_manager(self._cache_hash(capability))
        name = self.name[:150]  # as Triton cuts it
        group = manager.get_group(f"{name}.json") or {}
        return {f"{name}.json", f"{name}.cubin"} <= group.keys()

    def _cache_hash(self, capability: int) -> str:
        backend = make_backend(_target(capability))
        options = backend.parse_options(dict(self.options))
        key = get_cache_key(
            self.source(), backend, options, env_vars=get_cache_invalidating_env_vars()
        )
        return hashlib.sha256(key.encode()).hexdigest()


def variant_of(launch: Launch, capability: int = 90) -> Variant:
    """The form of the kernel that this launch runs, as Triton's just-in-time compiler finds it.

    The tensors may be without memory: their storage counts as aligned, as an allocator's is.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
    """
    kernel = launch.kernel
    if interpreting():
        raise RuntimeError(
            "TRITON_INTERPRET is set, so kernels are interpreted; unset it to compile them"
        )
    backend, binder = _binder(kernel, capability)
    arguments = {name: _without_memory(value) for name, value in launch.all_args.items()}
    given = arguments | launch.options | {
        "debug": kernel.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }  # fmt: skip
    bound, specialization, options = binder(**given)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, given, bound, specialization, options
    )
    return Variant(
        (kernel.__module__, kernel.__name__), signature, constants, attributes,
        {name: value for name, value in vars(parsed).items() if name in given},
    )  # fmt: skip


@dataclass(frozen=True)
class _Address:
    """What Triton asks of a tensor: its dtype, and whether its address is divisible by 16."""

    dtype: torch.dtype
    offset: int  # bytes from the start of its storage

    def data_ptr(self) -> int:
        return self.offset


def _without_memory(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Address(value.dtype, int(value.storage_offset()) * value.element_size())
    if isinstance(value, tuple):  # a named tuple of arguments, see `state.args`
        return type(value)(*map(_without_memory, value))
    return value


@functools.cache
def _binder(kernel: Any, capability: int) -> tuple[Any, Any]:
    backend = make_backend(_target(capability))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def _target(capability: int) -> GPUTarget:
    return GPUTarget("cuda", capability, _WARP_SIZE)
