"""The part of the build that pyproject.toml cannot express: the optional libraries from `csrc/`.

The CUDA library is compiled where nvcc is found, and the CPU library where a C++ compiler is found
(see `cuda/build.py` and `cpu/build.py` of kernels/rsd_kernels). Without a compiler, or if compiling
fails, the install succeeds without them. RSD_BUILD_CUDA=0 and RSD_BUILD_CPU=0 skip a library; =1
makes its failure an error.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "rsd_kernels"
PACKAGE_FOLDER = ROOT / "kernels" / PACKAGE

sys.path.insert(0, str(PACKAGE_FOLDER.parent))  # not installed yet; these modules need no other
from rsd_kernels.cpu import build as cpu_build  # noqa: E402
from rsd_kernels.cuda import build as cuda_build  # noqa: E402
from rsd_kernels.native.build import BuildError, BuildReport, NativeLibrary  # noqa: E402


@dataclass(frozen=True)
class OptionalLibrary:
    """A library, the function that compiles it, and the reason if it is skipped."""

    native: NativeLibrary
    compile: Callable[..., BuildReport]
    skip_reason: str | None

    @property
    def sources(self) -> Path:
        return ROOT / "csrc" / self.native.source_path

    @property
    def module_name(self) -> str:
        return f"{PACKAGE}.{Path(self.native.file_name).stem}"

    def record_skip(self, folder: Path) -> None:
        """Reports the reason, and removes the library of an earlier build, so none is loaded."""
        (folder / self.native.file_name).unlink(missing_ok=True)
        report = BuildReport(built=False, reason=self.skip_reason or "")
        self.native.write_report(report, folder)

    def copy_sources(self, package: Path) -> None:
        target = package / "csrc" / self.native.source_path
        for path in self.native.source_files(self.sources):
            copy = target / path.relative_to(self.sources)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def extension(self) -> Extension:
        files = self.native.source_files(self.sources)
        sources = [str(path.relative_to(ROOT)) for path in files if path.suffix in (".cu", ".cpp")]
        optional = not self.native.is_required(os.environ)
        return Extension(self.module_name, sources, optional=optional)


LIBRARIES = tuple(
    OptionalLibrary(native, compile_library, native.skip_reason(os.environ, find))
    for native, compile_library, find in (
        (cuda_build.LIBRARY, cuda_build.build_library, cuda_build.find_nvcc),
        (cpu_build.LIBRARY, cpu_build.build_library, cpu_build.find_compiler),
    )
)
# By name of the extension. A wheel without extensions stays py3-none-any.
TO_BUILD = {library.module_name: library for library in LIBRARIES if library.skip_reason is None}
SKIPPED = [library for library in LIBRARIES if library.skip_reason is not None]


class BuildPython(build_py):
    """Ships the sources inside the package, so that the libraries can be built later."""

    def run(self) -> None:
        super().run()
        target = PACKAGE_FOLDER if self.editable_mode else Path(self.build_lib, PACKAGE)
        if not self.editable_mode:
            for library in LIBRARIES:
                library.copy_sources(target)
        for library in SKIPPED:
            library.record_skip(target)


class BuildLibraries(build_ext):
    """Compiles each library in its own way.

    ctypes loads them, so their file names are not those of Python modules.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            return
        for library in SKIPPED:
            library.record_skip(PACKAGE_FOLDER)
        built = Path(self.build_lib, PACKAGE)
        for native in (library.native for library in TO_BUILD.values()):
            # A failed build has no library to copy; one of an earlier build must not stay.
            if not (built / native.file_name).exists():
                (PACKAGE_FOLDER / native.file_name).unlink(missing_ok=True)
            shutil.copyfile(built / native.report_name, PACKAGE_FOLDER / native.report_name)

    def build_extension(self, ext: Extension) -> None:
        library = TO_BUILD[ext.name]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        try:
            report = library.compile(output, library.sources, os.environ)
        except (BuildError, OSError) as error:
            if library.native.is_required(os.environ):
                raise
            self.warn(f"the {library.native.title} was not built: {error}")
            report = BuildReport(built=False, reason=str(error))
        library.native.write_report(report, output.parent)

    def get_ext_filename(self, fullname: str) -> str:
        *folders, stem = fullname.split(".")
        return str(Path(*folders, f"{stem}.so"))


class PlatformWheel(bdist_wheel):
    """The libraries depend on the platform, not on the Python version: py3-none-<platform>."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if TO_BUILD else (python, abi, platform)


def main() -> Distribution:
    return setup(
        ext_modules=[library.extension() for library in TO_BUILD.values()],
        cmdclass={
            "build_py": BuildPython,
            "build_ext": BuildLibraries,
            "bdist_wheel": PlatformWheel,
        },
    )


main()
