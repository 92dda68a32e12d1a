"""Loads the optional CUDA library (ctypes, no Python ABI) and says why where there is none."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsd_kernels import cuda_build

# Equal to RSD_ABI_VERSION of csrc/rsd_kernels.h.
ABI_VERSION = 1
REBUILD = "python -m rsd_kernels.cuda_build"

_FOLDER = Path(__file__).resolve().parent


class CudaLibraryError(RuntimeError):
    """A function of the library returned an error code."""


@dataclass(frozen=True)
class LibraryStatus:
    """`loaded`; `absent`: skipped or never built; `refused`: there, but of other sources or ABI."""

    state: Literal["loaded", "absent", "refused"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})"


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
    return load_from(_FOLDER)


def load_from(folder: Path) -> tuple[Library | None, LibraryStatus]:
    report = cuda_build.BuildReport.read(folder)
    path = folder / cuda_build.LIBRARY_NAME
    if not path.exists():
        reason = report.reason if report is not None else "it was never built for this install"
        return None, LibraryStatus("absent", reason)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return None, LibraryStatus("refused", f"it cannot be loaded: {error}")
    refusal = _refusal(handle)
    if refusal is not None:
        return None, LibraryStatus("refused", f"{refusal}; rebuild it: {REBUILD}")
    targets = ", ".join(report.archs) if report is not None else "unknown targets"
    return Library(handle), LibraryStatus("loaded", f"ABI {ABI_VERSION}, built for {targets}")


def _refusal(handle: ctypes.CDLL) -> str | None:
    """Another ABI means other arguments; other sources may compute something else."""
    try:
        handle.rsd_abi_version.restype = ctypes.c_int32
        handle.rsd_source_hash.restype = ctypes.c_char_p
        abi = handle.rsd_abi_version()
        built_from = handle.rsd_source_hash().decode()
    except AttributeError as error:
        return f"it lacks a function: {error}"
    if abi != ABI_VERSION:
        return f"it has ABI {abi}, and this package needs ABI {ABI_VERSION}"
    sources = cuda_build.source_folder()
    if sources is None:
        return "the sources it should match are not installed"
    expected = cuda_build.source_hash(sources)
    if built_from != expected:
        return f"it was built from other sources (hash {built_from}, now {expected})"
    return None
