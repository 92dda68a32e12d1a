"""Builds the optional CPU library from `csrc/cpu/` with a C++ compiler: no torch, no Python.h.

The kernels are compiled once for every instruction set, and the library chooses when it is loaded,
so that it runs on other machines too. OpenMP is used but not linked: its calls go to the runtime
that torch has loaded. `python -m rsd_kernels.cpu.build` builds the library for an installed
package.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsd_kernels.native.build import (
    BuildError,
    BuildReport,
    CompilerSearch,
    NativeLibrary,
    build_here,
    find_program,
    run_compilers,
)

LIBRARY = NativeLibrary(
    title="CPU library",
    file_name="librsd_cpu.so",
    report_name="cpu_build_report.json",
    switch="RSD_BUILD_CPU",
    module="rsd_kernels.cpu.build",
    source_path="cpu",
    source_suffixes=(".cpp", ".h"),
    header="rsd_cpu.h",
    subfolders=("control",),
)
_KERNELS = "kernels.cpp"  # compiled for each of the targets
_X86_TARGETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "baseline": (),
}
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-math-errno",
    "-ffp-contract=fast",
)


def find_compiler(environment: Mapping[str, str]) -> CompilerSearch:
    """Only RSD_CXX if it is set; otherwise the first of CXX, c++, g++ and clang++ on the PATH."""
    chosen = find_program("RSD_CXX", environment)
    if chosen is not None:
        return chosen
    search_path = environment.get("PATH", os.defpath)
    for name in filter(None, (environment.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name, path=search_path)
        if path is not None:
            return CompilerSearch(Path(path), "CXX" if name == environment.get("CXX") else "PATH")
    return CompilerSearch(
        None, "no C++ compiler was found (tried RSD_CXX, CXX, and c++, g++, clang++ on PATH)"
    )


def targets() -> dict[str, tuple[str, ...]]:
    """Instruction set -> compiler flags, for the architecture of this machine."""
    return _X86_TARGETS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ()}


def build_library(
    output: Path, sources: Path, environment: Mapping[str, str], *, extra_flags: Sequence[str] = ()
) -> BuildReport:
    """Compiles `sources` into `output`. Raises BuildError with the compiler's message."""
    search = find_compiler(environment)
    if search.path is None:
        raise BuildError(search.reason)
    digest = LIBRARY.source_hash(sources)
    compile_one = [str(search.path), *_FLAGS, f'-DRSD_SOURCE_HASH="{digest}"', *extra_flags, "-c"]
    with LIBRARY.made_aside(output) as made:
        units = {
            made.with_name(f"kernels_{name}.o"): [*flags, f"-DRSD_CPU_ISA={name}", _KERNELS]
            for name, flags in targets().items()
        }
        for path in LIBRARY.source_files(sources):
            if path.suffix == ".cpp" and path.name != _KERNELS:
                units[made.with_name(f"{path.stem}.o")] = [str(path.relative_to(sources))]
        run_compilers(
            [
                [*compile_one, *arguments, str(sources / source), "-o", str(unit)]
                for unit, (*arguments, source) in units.items()
            ]
        )
        run_compilers(
            [[str(search.path), "-shared", *extra_flags, *map(str, units), "-o", str(made)]]
        )
    return BuildReport(
        built=True,
        reason=f"C++ compiler found by {search.reason}",
        targets=tuple(targets()),
        compiler=_version(search.path),
        source_hash=digest,
    )


def _version(compiler: Path) -> str:
    done = subprocess.run([str(compiler), "--version"], capture_output=True, text=True)
    return done.stdout.partition("\n")[0].strip() or "unknown"


if __name__ == "__main__":
    sys.exit(build_here(LIBRARY, os.environ, find_compiler, build_library))
