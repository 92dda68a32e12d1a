"""The C functions by which Triton launches kernels, compiled without a GPU.

Triton 3.6 compiles one with the C compiler for every signature, at its first launch; later versions
have one for all. What it loads is a Python extension in its cache, under a hash of its source.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from triton.backends.nvidia import driver
from triton.runtime import build
from triton.runtime.cache import get_cache_manager

from rsd_kernels.aot.variant import Variant

_LAUNCHER, _LOADER = "__triton_launcher", "cuda_utils"  # Triton's names
_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def launcher_sources(variants: Sequence[Variant]) -> list[str]:
    """The C sources of the launchers of these kernels, each once; none where Triton needs none."""
    make = getattr(driver, "make_launcher", None)
    if make is None:
        return []
    return sorted({make(v.constants, dict(v.signature), None) for v in variants})


def missing_launchers(variants: Sequence[Variant]) -> list[str]:
    """Names of modules that Triton would compile to launch these kernels."""
    return [
        name for name, source in _modules(variants)
        if get_cache_manager(_key(source)).get_file(f"{name}{_SUFFIX}") is None
    ]  # fmt: skip


def launcher_folders(variants: Sequence[Variant]) -> set[str]:
    """The names of their folders in Triton's cache."""
    return {str(get_cache_manager(_key(source)).key) for _, source in _modules(variants)}


def build_launcher(source: str) -> None:
    """Compiles one into Triton's cache, unless it is there."""
    _build(_LAUNCHER, source)


def build_driver_module() -> None:
    """The same for the module by which Triton loads kernels."""
    _build(_LOADER, _loader_source())


def _modules(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """(name, source)"""
    launchers = [(_LAUNCHER, source) for source in launcher_sources(variants)]
    return [(_LOADER, _loader_source()), *launchers]


def _loader_source() -> str:
    return (Path(driver.__file__).parent / "driver.c").read_text(encoding="utf-8")


def _key(source: str) -> str:
    """As Triton names it."""
    return hashlib.sha256((source + build.platform_key()).encode()).hexdigest()


def _build(name: str, source: str) -> None:
    """It is not loaded: it needs the driver of a GPU."""
    with _linkable_driver(source), mock.patch.object(build, "_load_module_from_path"):
        build.compile_module_from_src(
            src=source, name=name, library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs, libraries=driver.libraries,
        )  # fmt: skip


@contextmanager
def _linkable_driver(source: str) -> Iterator[None]:
    """Where there is no driver, a library of its name with what `source` calls, for the linker."""
    try:
        driver.library_dirs()
        yield
        return
    except (AssertionError, OSError, subprocess.CalledProcessError):
        pass  # as Triton says that there is none
    functions = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", source)))
    text = "".join(f"void {name}(void) {{}}\n" for name in functions)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        command = [os.environ.get("CC", "gcc"), "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
        subprocess.run([*command, "-o", library, "-x", "c", "-"], input=text, text=True, check=True)
        folders = [driver.libdevice_dir, folder]
        with mock.patch.object(driver, "library_dirs", lambda: folders):
            yield
