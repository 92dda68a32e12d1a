"""The functions of the optional CUDA library."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from rsd_kernels.cuda.build import LIBRARY
from rsd_kernels.native.build import PACKAGE
from rsd_kernels.native.library import LibraryStatus, open_library

# Equal to RSD_ABI_VERSION of csrc/rsd_kernels.h.
ABI_VERSION = 1


class CudaLibraryError(RuntimeError):
    """A function of the library returned an error code."""


class Library:
    """The functions of csrc/rsd_kernels.h with their argument types."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._error_string = handle.rsd_error_string
        self._error_string.argtypes = [ctypes.c_int32]
        self._error_string.restype = ctypes.c_char_p
        pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.decode_projection = handle.rsd_decode_projection
        self.decode_projection.argtypes = [pointer] * 4 + [i64] * 6 + [i32] * 3 + [pointer]
        self.decode_projection.restype = i32

    def check(self, code: int, function: str) -> None:
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
