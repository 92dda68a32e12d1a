"""Builds the optional CUDA library from `csrc/` with nvcc alone: no torch, no Python headers.

`python -m rsd_kernels.cuda.build` builds it later, beside an installed package.
"""

from __future__ import annotations

import os
import re
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
    title="CUDA library",
    file_name="librsd_cuda.so",
    report_name="cuda_build_report.json",
    switch="RSD_BUILD_CUDA",
    module="rsd_kernels.cuda.build",
    source_path="",
    source_suffixes=(".cu", ".cuh", ".h"),
    header="rsd_kernels.h",
)
# What a build makes when RSD_CUDA_ARCHS does not say: machine code for A100, H100 and B200, and the
# newest PTX for devices after them. An `a` target is not forward compatible, so it never gives PTX.
DEFAULT_ARCHS = "80;90a;100+PTX"

_ARCH = re.compile(r"(?:sm_)?(\d{2,3}[af]?)(\+PTX)?")


def find_nvcc(environment: Mapping[str, str]) -> CompilerSearch:
    """RSD_NVCC alone if set; else $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda, in this order."""
    chosen = find_program("RSD_NVCC", environment)
    if chosen is not None:
        return chosen
    for name in ("CUDA_HOME", "CUDA_PATH"):
        root = environment.get(name)
        path = shutil.which(str(Path(root, "bin", "nvcc"))) if root else None
        if path is not None:
            return CompilerSearch(Path(path), name)
    on_path = shutil.which("nvcc", path=environment.get("PATH", os.defpath))
    if on_path is not None:
        return CompilerSearch(Path(on_path), "PATH")
    usual = shutil.which("/usr/local/cuda/bin/nvcc")
    if usual is not None:
        return CompilerSearch(Path(usual), "/usr/local/cuda")
    where = "RSD_NVCC, CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda"
    return CompilerSearch(None, f"nvcc was not found (looked at {where})")


def gencode_flags(archs: str) -> list[str]:
    """nvcc flags for "80;90a;100+PTX": machine code for each, and PTX where +PTX asks for it."""
    flags = []
    for entry in filter(None, re.split(r"[;,\s]+", archs)):
        match = _ARCH.fullmatch(entry)
        if match is None:
            raise BuildError(
                f"RSD_CUDA_ARCHS: {entry!r} is not an architecture; "
                f"write numbers such as {DEFAULT_ARCHS!r}"
            )
        arch, ptx = match.groups()
        codes = f"sm_{arch},compute_{arch}" if ptx else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code=[{codes}]")
    if not flags:
        raise BuildError(f"RSD_CUDA_ARCHS={archs!r} names no architecture")
    return flags


def build_library(
    output: Path, sources: Path, environment: Mapping[str, str], *, extra_flags: Sequence[str] = ()
) -> BuildReport:
    """Compiles `sources` into the library `output`. Raises BuildError with nvcc's words."""
    search = find_nvcc(environment)
    if search.path is None:
        raise BuildError(search.reason)
    archs = environment.get("RSD_CUDA_ARCHS") or _supported_default_archs(search.path)
    digest = LIBRARY.source_hash(sources)
    with LIBRARY.made_aside(output) as made:
        command = [
            str(search.path),
            "-shared",
            "-std=c++17",
            "-O3",
            "--threads=2",
            "-cudart=static",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            f'-DRSD_SOURCE_HASH="{digest}"',
            *gencode_flags(archs),
            *extra_flags,
            *(str(path) for path in LIBRARY.source_files(sources) if path.suffix == ".cu"),
            f"-o={made}",
        ]
        run_compilers([command])
    return BuildReport(
        built=True,
        reason=f"nvcc found by {search.reason}",
        targets=tuple(filter(None, re.split(r"[;,\s]+", archs))),
        compiler=f"nvcc {nvcc_version(search.path)}",
        source_hash=digest,
    )


def nvcc_version(nvcc: Path) -> str:
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release [\d.]+, V([\d.]+)", text)
    return match[1] if match else "unknown"


def _supported_default_archs(nvcc: Path) -> str:
    """The default less what this nvcc does not know yet, so that an older toolkit still builds."""
    listed = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True)
    known = set(re.findall(r"sm_(\d+)", listed.stdout))
    wanted = DEFAULT_ARCHS.split(";")
    kept = [entry for entry in wanted if re.sub(r"\D", "", entry) in known]
    # A compiler that cannot list its targets is asked for all, and says itself what is wrong.
    return ";".join(kept or wanted)


if __name__ == "__main__":
    sys.exit(build_here(LIBRARY, os.environ, find_nvcc, build_library))
