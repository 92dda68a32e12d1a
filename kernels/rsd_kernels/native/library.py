"""Load an optional C library by ctypes, which needs no Python ABI, or say why there is none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsd_kernels.native.build import NativeLibrary


@dataclass(frozen=True)
class LibraryStatus:
    """`loaded`; `absent`: skipped or never built; `refused`: there, but cannot be used."""

    state: Literal["loaded", "absent", "refused"]
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})"


def open_library(
    library: NativeLibrary, folder: Path, prefix: str, abi_version: int
) -> tuple[ctypes.CDLL | None, LibraryStatus]:
    """The library in `folder`, or None if it is absent, cannot be loaded or has other sources.

    Args:
        library: the library.
        folder: holds it and its build report.
        prefix: prefix of its functions `abi_version` and `source_hash`.
        abi_version: the version that this package was written for.
    """
    report = library.read_report(folder)
    path = folder / library.file_name
    if not path.exists():
        reason = report.reason if report is not None else "it was never built for this install"
        return None, LibraryStatus("absent", reason)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return None, LibraryStatus("refused", f"it cannot be loaded: {error}")
    refusal = _refusal(handle, library, prefix, abi_version)
    if refusal is not None:
        return None, LibraryStatus("refused", f"{refusal}; rebuild it: {library.rebuild}")
    targets = ", ".join(report.targets) if report is not None else "unknown targets"
    return handle, LibraryStatus("loaded", f"ABI {abi_version}, built for {targets}")


def _refusal(
    handle: ctypes.CDLL, library: NativeLibrary, prefix: str, abi_version: int
) -> str | None:
    """Why not to use it: another ABI has other arguments, other sources may compute otherwise."""
    try:
        find_abi, find_hash = handle[f"{prefix}abi_version"], handle[f"{prefix}source_hash"]
    except AttributeError as error:
        return f"it lacks a function: {error}"
    find_abi.restype, find_hash.restype = ctypes.c_int32, ctypes.c_char_p
    abi, built_from = find_abi(), find_hash().decode()
    if abi != abi_version:
        return f"it has ABI {abi}, and this package needs ABI {abi_version}"
    sources = library.source_folder()
    if sources is None:
        return "the sources it should match are not installed"
    expected = library.source_hash(sources)
    if built_from != expected:
        return f"it was built from other sources (hash {built_from}, now {expected})"
    return None
