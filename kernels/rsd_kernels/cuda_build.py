"""Builds the optional CUDA library from `csrc/` with nvcc alone: no torch, no Python headers.

`setup.py` loads this file by its path, at a time when nothing is installed: standard library only.
`python -m rsd_kernels.cuda_build` builds the library later, beside an installed package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LIBRARY_NAME = "librsd_cuda.so"
REPORT_NAME = "cuda_build_report.json"
# What a build makes when RSD_CUDA_ARCHS does not say: machine code for A100, H100 and B200, and the
# newest PTX for devices after them. An `a` target is not forward compatible, so it never gives PTX.
DEFAULT_ARCHS = "80;90a;100+PTX"

_SOURCE_SUFFIXES = (".cu", ".cuh", ".h")
_ARCH = re.compile(r"(?:sm_)?(\d{2,3}[af]?)(\+PTX)?")


class CudaBuildError(RuntimeError):
    """The CUDA library was wanted and could not be built; the message says why."""


@dataclass(frozen=True)
class NvccSearch:
    """Where nvcc is, or why there is none."""

    path: Path | None
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """What the last build did: written beside the library, read by `cuda_library.status`."""

    built: bool
    reason: str
    archs: tuple[str, ...] = ()
    nvcc_version: str = ""
    source_hash: str = ""

    def write(self, folder: Path) -> None:
        (folder / REPORT_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BuildReport | None:
        try:
            fields = json.loads((folder / REPORT_NAME).read_text())
            return cls(**{**fields, "archs": tuple(fields["archs"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def source_folder() -> Path | None:
    """`csrc/`: inside the package in a wheel, at the top of the tree in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc", package.parents[1] / "csrc"):
        if (folder / "rsd_kernels.h").is_file():
            return folder
    return None


def source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SOURCE_SUFFIXES)


def source_hash(folder: Path) -> str:
    """One hash of all names and texts: a library made from other sources is not loaded."""
    digest = hashlib.sha256()
    for path in source_files(folder):
        text = path.read_bytes()
        digest.update(f"{path.name}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()[:16]


def find_nvcc(environment: Mapping[str, str]) -> NvccSearch:
    """RSD_NVCC alone if set; else $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda, in this order."""
    chosen = environment.get("RSD_NVCC")
    if chosen:
        path = shutil.which(chosen)
        if path is None:
            return NvccSearch(None, f"RSD_NVCC={chosen} is not a program that can be run")
        return NvccSearch(Path(path), "RSD_NVCC")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        root = environment.get(name)
        path = shutil.which(str(Path(root, "bin", "nvcc"))) if root else None
        if path is not None:
            return NvccSearch(Path(path), name)
    on_path = shutil.which("nvcc", path=environment.get("PATH", os.defpath))
    if on_path is not None:
        return NvccSearch(Path(on_path), "PATH")
    usual = shutil.which("/usr/local/cuda/bin/nvcc")
    if usual is not None:
        return NvccSearch(Path(usual), "/usr/local/cuda")
    where = "RSD_NVCC, CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda"
    return NvccSearch(None, f"nvcc was not found (looked at {where})")


def is_required(environment: Mapping[str, str]) -> bool:
    """RSD_BUILD_CUDA=1: a library that cannot be built is an error."""
    return _build_switch(environment) == "1"


def skip_reason(environment: Mapping[str, str]) -> str | None:
    """Why no library is to be built here, or None if one is. Raises where one is required."""
    switch = _build_switch(environment)
    if switch == "0":
        return "RSD_BUILD_CUDA=0"
    if not sys.platform.startswith("linux"):
        reason = f"the CUDA library is built on Linux only, and this is {sys.platform}"
    else:
        search = find_nvcc(environment)
        if search.path is not None:
            return None
        reason = search.reason
    if switch == "1":
        raise CudaBuildError(f"RSD_BUILD_CUDA=1, but {reason}")
    return reason


def gencode_flags(archs: str) -> list[str]:
    """nvcc flags for "80;90a;100+PTX": machine code for each, and PTX where +PTX asks for it."""
    flags = []
    for entry in filter(None, re.split(r"[;,\s]+", archs)):
        match = _ARCH.fullmatch(entry)
        if match is None:
            raise CudaBuildError(
                f"RSD_CUDA_ARCHS: {entry!r} is not an architecture; "
                f"write numbers such as {DEFAULT_ARCHS!r}"
            )
        arch, ptx = match.groups()
        codes = f"sm_{arch},compute_{arch}" if ptx else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code=[{codes}]")
    if not flags:
        raise CudaBuildError(f"RSD_CUDA_ARCHS={archs!r} names no architecture")
    return flags


def build_library(
    output: Path, sources: Path, environment: Mapping[str, str], *, extra_flags: Sequence[str] = ()
) -> BuildReport:
    """Compiles `sources` into the library `output`. Raises CudaBuildError with nvcc's words."""
    search = find_nvcc(environment)
    if search.path is None:
        raise CudaBuildError(search.reason)
    archs = environment.get("RSD_CUDA_ARCHS") or _supported_default_archs(search.path)
    digest = source_hash(sources)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and moved into place, so that nobody ever loads half a library.
    with tempfile.TemporaryDirectory(prefix="rsd-build-", dir=output.parent) as aside:
        made = Path(aside, LIBRARY_NAME)
        _run_nvcc(
            [
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
                *(str(path) for path in source_files(sources) if path.suffix == ".cu"),
                f"-o={made}",
            ]
        )
        made.replace(output)
    return BuildReport(
        built=True,
        reason=f"nvcc found by {search.reason}",
        archs=tuple(filter(None, re.split(r"[;,\s]+", archs))),
        nvcc_version=nvcc_version(search.path),
        source_hash=digest,
    )


def nvcc_version(nvcc: Path) -> str:
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release [\d.]+, V([\d.]+)", text)
    return match[1] if match else "unknown"


def _build_switch(environment: Mapping[str, str]) -> str:
    value = environment.get("RSD_BUILD_CUDA", "")
    if value not in ("", "0", "1"):
        raise CudaBuildError(
            f"RSD_BUILD_CUDA={value!r} is not allowed: 0 skips the CUDA library, "
            "1 makes a failed build an error, unset builds it where nvcc is found"
        )
    return value


def _supported_default_archs(nvcc: Path) -> str:
    """The default less what this nvcc does not know yet, so that an older toolkit still builds."""
    listed = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True)
    known = set(re.findall(r"sm_(\d+)", listed.stdout))
    wanted = DEFAULT_ARCHS.split(";")
    kept = [entry for entry in wanted if re.sub(r"\D", "", entry) in known]
    # A compiler that cannot list its targets is asked for all, and says itself what is wrong.
    return ";".join(kept or wanted)


def _run_nvcc(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CudaBuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        raise CudaBuildError(f"nvcc failed with exit status {done.returncode}:\n{said}")


def main() -> int:
    package = Path(__file__).resolve().parent
    sources = source_folder()
    try:
        if sources is None:
            raise CudaBuildError("the sources (csrc/) are not beside this package")
        reason = skip_reason(os.environ)
        if reason is not None:
            raise CudaBuildError(reason)
        report = build_library(package / LIBRARY_NAME, sources, os.environ)
        report.write(package)
    except (CudaBuildError, OSError) as error:
        print(f"rsd_kernels: the CUDA library was not built: {error}", file=sys.stderr)
        return 1
    print(f"rsd_kernels: built {package / LIBRARY_NAME} for {', '.join(report.archs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
