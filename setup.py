"""The part of the build that pyproject.toml cannot say: the optional libraries from `csrc/`.

Where nvcc is found the CUDA library is compiled, and where a C++ compiler is found the CPU library
(by `cuda/build.py` and `cpu/build.py` of kernels/rsd_kernels); elsewhere, or where compiling fails,
the install succeeds without them.
RSD_BUILD_CUDA=0 and RSD_BUILD_CPU=0 skip one, =1 makes a failure an error.
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

sys.path.insert(0, str(PACKAGE_FOLDER.parent))  # not installed yet; these need no other package
from rsd_kernels.cpu import build as cpu_build  # noqa: E402
from rsd_kernels.cuda import build as cuda_build  # noqa: E402
from rsd_kernels.native.build import BuildError, BuildReport, NativeLibrary  # noqa: E402


@dataclass(frozen=True)
class LibraryBuild:
    """One library, how it is built, and why it is not if it is not."""

    library: NativeLibrary
    build: Callable[..., BuildReport]
    skip_reason: str | None

    @property
    def sources(self) -> Path:
        return ROOT / "csrc" / self.library.source_path

    @property
    def module_name(self) -> str:
        return f"{PACKAGE}.{Path(self.library.file_name).stem}"

    def record_skip(self, folder: Path) -> None:
        """Also removes an earlier build's library: skipping means that none is loaded."""
        (folder / self.library.file_name).unlink(missing_ok=True)
        report = BuildReport(built=False, reason=self.skip_reason or "")
        self.library.write_report(report, folder)

    def copy_sources(self, package: Path) -> None:
        target = package / "csrc" / self.library.source_path
        target.mkdir(parents=True, exist_ok=True)
        for path in self.library.source_files(self.sources):
            shutil.copyfile(path, target / path.name)

    def extension(self) -> Extension:
        files = self.library.source_files(self.sources)
        sources = [str(path.relative_to(ROOT)) for path in files if path.suffix in (".cu", ".cpp")]
        optional = not self.library.is_required(os.environ)
        return Extension(self.module_name, sources, optional=optional)


BUILDS = tuple(
    LibraryBuild(library, build, library.skip_reason(os.environ, find))
    for library, build, find in (
        (cuda_build.LIBRARY, cuda_build.build_library, cuda_build.find_nvcc),
        (cpu_build.LIBRARY, cpu_build.build_library, cpu_build.find_compiler),
    )
)
# No extension where none will be built: without any the wheel stays py3-none-any.
BUILT = {build.module_name: build for build in BUILDS if build.skip_reason is None}
SKIPPED = [build for build in BUILDS if build.skip_reason is not None]


class BuildPython(build_py):
    """Ships the sources inside the package, so that the libraries can be built later."""

    def run(self) -> None:
        super().run()
        target = PACKAGE_FOLDER if self.editable_mode else Path(self.build_lib, PACKAGE)
        if not self.editable_mode:
            for build in BUILDS:
                build.copy_sources(target)
        for build in SKIPPED:
            build.record_skip(target)


class BuildLibraries(build_ext):
    """Compiles in the libraries' own ways.

    They are loaded by ctypes, so their names carry no Python version and are no module's.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            return
        for build in SKIPPED:
            build.record_skip(PACKAGE_FOLDER)
        for build in BUILT.values():
            # A failed build leaves nothing to copy: an older library must not stay in its place.
            made, library = Path(self.build_lib, PACKAGE), build.library
            if not (made / library.file_name).exists():
                (PACKAGE_FOLDER / library.file_name).unlink(missing_ok=True)
            shutil.copyfile(made / library.report_name, PACKAGE_FOLDER / library.report_name)

    def build_extension(self, ext: Extension) -> None:
        build = BUILT[ext.name]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        try:
            report = build.build(output, build.sources, os.environ)
        except (BuildError, OSError) as error:
            if build.library.is_required(os.environ):
                raise
            self.warn(f"the {build.library.title} was not built: {error}")
            report = BuildReport(built=False, reason=str(error))
        build.library.write_report(report, output.parent)

    def get_ext_filename(self, fullname: str) -> str:
        *folders, stem = fullname.split(".")
        return str(Path(*folders, f"{stem}.so"))


class PlatformWheel(bdist_wheel):
    """The libraries depend on the platform, not on the Python version: py3-none-<platform>."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if BUILT else (python, abi, platform)


def main() -> Distribution:
    return setup(
        ext_modules=[build.extension() for build in BUILT.values()],
        cmdclass={
            "build_py": BuildPython,
            "build_ext": BuildLibraries,
            "bdist_wheel": PlatformWheel,
        },
    )


main()
