"""The functions and structures of the optional CUDA library, csrc/rsd_kernels.h."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from rsd_kernels.cuda.build import LIBRARY
from rsd_kernels.native.build import PACKAGE
from rsd_kernels.native.library import LibraryStatus, open_library

# Equal to RSD_ABI_VERSION of csrc/rsd_kernels.h.
ABI_VERSION = 2

_POINTER, _I64, _I32, _F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class CudaLibraryError(RuntimeError):
    """A function of the library returned an error code."""


class Projection(ctypes.Structure):
    """RsdProjection: one product, and what is fused into it."""

    _fields_ = [
        *((name, _POINTER) for name in ("y", "x", "weight", "bias", "norm", "residual")),
        *((name, _I64) for name in ("num_rows", "num_outputs", "num_inputs")),
        *((f"{name}_stride", _I64) for name in ("y", "x", "weight", "residual")),
        ("eps", _F32),
        ("dtype", _I32),
        ("flags", _I32),
    ]


class Library:
    """The functions of csrc/rsd_kernels.h with their argument types."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._error_string = handle.rsd_error_string
        self._error_string.argtypes = [_I32]
        self._error_string.restype = ctypes.c_char_p
        # (projection, device, stream) -> an error code
        self.decode_projection = handle.rsd_decode_projection
        self.decode_projection.argtypes = [ctypes.POINTER(Projection), _I32, _POINTER]
        self.decode_projection.restype = _I32

    def check(self, code: int, function: str) -> None:
        """Raises CudaLibraryError unless `code`, which `function` returned, is success."""
        if code != 0:
            raise CudaLibraryError(f"{function}: {self._error_string(code).decode()} (code {code})")


def load() -> Library | None:
    """The library, or None where it is absent or refused; `status` says why."""
    return _load_once()[0]


def status() -> LibraryStatus:
    return _load_once()[1]


@functools.cache
def _load_once() -> tuple[Library | None, LibraryStatus]:
    return load_from(PACKAGE)


def load_from(folder: Path) -> tuple[Library | None, LibraryStatus]:
    handle, status = open_library(LIBRARY, folder, "rsd_", ABI_VERSION)
    return (None if handle is None else Library(handle)), status
