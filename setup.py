"""The part of the build that pyproject.toml cannot say: the optional CUDA library from `csrc/`.

Where nvcc is found the library is compiled (by `kernels/rsd_kernels/cuda_build.py`); elsewhere, or
where compiling fails, the install succeeds without it.
RSD_BUILD_CUDA=0 skips it, RSD_BUILD_CUDA=1 makes a failure an error.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
PACKAGE = "rsd_kernels"
PACKAGE_FOLDER = ROOT / "kernels" / PACKAGE


def load_cuda_build() -> ModuleType:
    """By path: the package is not installed yet, and importing it may need torch."""
    name = "_rsd_cuda_build"
    spec = importlib.util.spec_from_file_location(name, PACKAGE_FOLDER / "cuda_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cuda_build = load_cuda_build()


class BuildPython(build_py):
    """Ships the CUDA sources inside the package, so that the library can be built later."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            target = PACKAGE_FOLDER
        else:
            target = Path(self.build_lib, PACKAGE)
            copy_sources(target / "csrc")
        if SKIP_REASON is not None:
            record_skip(target, SKIP_REASON)


class BuildCudaLibrary(build_ext):
    """Compiles with nvcc in place of the host compiler.

    The library is loaded by ctypes, so its name carries no Python version and is no module's.
    """

    def run(self) -> None:
        super().run()
        if self.inplace and SKIP_REASON is not None:
            record_skip(PACKAGE_FOLDER, SKIP_REASON)
        elif self.inplace and self.extensions:
            # A failed build leaves nothing to copy: an older library must not stay in its place.
            built = Path(self.build_lib, PACKAGE)
            if not (built / cuda_build.LIBRARY_NAME).exists():
                (PACKAGE_FOLDER / cuda_build.LIBRARY_NAME).unlink(missing_ok=True)
            shutil.copyfile(built / cuda_build.REPORT_NAME, PACKAGE_FOLDER / cuda_build.REPORT_NAME)

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        try:
            report = cuda_build.build_library(output, SOURCES, os.environ)
        except (cuda_build.CudaBuildError, OSError) as error:
            if cuda_build.is_required(os.environ):
                raise
            self.warn(f"the CUDA library was not built: {error}")
            report = cuda_build.BuildReport(built=False, reason=str(error))
        report.write(output.parent)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], cuda_build.LIBRARY_NAME))


class PlatformWheel(bdist_wheel):
    """The library depends on the platform, not on the Python version: py3-none-<platform>."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if EXTENSIONS else (python, abi, platform)


def copy_sources(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in cuda_build.source_files(SOURCES):
        shutil.copyfile(path, target / path.name)


def record_skip(folder: Path, reason: str) -> None:
    """Also removes an earlier build's library: RSD_BUILD_CUDA=0 means that none is loaded."""
    (folder / cuda_build.LIBRARY_NAME).unlink(missing_ok=True)
    cuda_build.BuildReport(built=False, reason=reason).write(folder)


def cuda_extensions() -> list[Extension]:
    """No extension where none will be built: the wheel then stays py3-none-any."""
    if SKIP_REASON is not None:
        return []
    optional = not cuda_build.is_required(os.environ)
    sources = [str(path.relative_to(ROOT)) for path in sorted(SOURCES.glob("*.cu"))]
    return [Extension(f"{PACKAGE}.librsd_cuda", sources, optional=optional)]


SKIP_REASON: str | None = cuda_build.skip_reason(os.environ)
EXTENSIONS = cuda_extensions()


def main() -> Distribution:
    return setup(
        ext_modules=EXTENSIONS,
        cmdclass={
            "build_py": BuildPython,
            "build_ext": BuildCudaLibrary,
            "bdist_wheel": PlatformWheel,
        },
    )


main()
