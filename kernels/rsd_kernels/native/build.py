"""How an optional C library is built from `csrc/`, whatever its compiler.

`setup.py` imports this when nothing is installed yet, so it uses the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # holds the libraries and their reports


class BuildError(RuntimeError):
    """A library was to be built and was not; the message says why."""


@dataclass(frozen=True)
class CompilerSearch:
    """Where a compiler is, or why there is none."""

    path: Path | None
    reason: str


@dataclass(frozen=True)
class NativeLibrary:
    """One optional library: its files, and the environment variable that steers its build."""

    title: str  # for messages: "the <title> was not built"
    file_name: str
    report_name: str
    switch: str  # 0 skips the build, 1 makes a failure an error
    module: str  # `python -m` builds it later
    source_path: str  # its folder, relative to csrc/
    source_suffixes: tuple[str, ...]
    header: str  # a file that tells its folder
    subfolders: tuple[str, ...] = ()  # of that folder, with sources of its own

    @property
    def rebuild(self) -> str:
        return f"python -m {self.module}"

    def source_folder(self) -> Path | None:
        """Where its sources are: inside the package (a wheel) or in `csrc/` (a checkout)."""
        for root in (PACKAGE / "csrc", PACKAGE.parents[1] / "csrc"):
            folder = root / self.source_path
            if (folder / self.header).is_file():
                return folder
        return None

    def source_files(self, folder: Path) -> list[Path]:
        folders = (folder, *(folder / name for name in self.subfolders))
        paths = (path for inside in folders for path in inside.iterdir())
        return sorted(path for path in paths if path.suffix in self.source_suffixes)

    def source_hash(self, folder: Path) -> str:
        """A hash of all names and texts; a library built from other sources is not loaded."""
        digest = hashlib.sha256()
        for path in self.source_files(folder):
            text = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{len(text)}\0".encode())
            digest.update(text)
        return digest.hexdigest()[:16]

    def switch_value(self, environment: Mapping[str, str]) -> str:
        value = environment.get(self.switch, "")
        if value not in ("", "0", "1"):
            raise BuildError(
                f"{self.switch}={value!r} is not allowed: 0 skips the {self.title}, "
                "1 makes a failed build an error, unset builds it where its compiler is found"
            )
        return value

    def is_required(self, environment: Mapping[str, str]) -> bool:
        """True if the switch is 1: failing to build the library is then an error."""
        return self.switch_value(environment) == "1"

    def skip_reason(
        self, environment: Mapping[str, str], find: Callable[[Mapping[str, str]], CompilerSearch]
    ) -> str | None:
        """Why the library is not built here; None if it is. Raises BuildError if it must be."""
        if self.switch_value(environment) == "0":
            return f"{self.switch}=0"
        if not sys.platform.startswith("linux"):
            reason = f"the {self.title} is built on Linux only, and this is {sys.platform}"
        else:
            search = find(environment)
            if search.path is not None:
                return None
            reason = search.reason
        if self.is_required(environment):
            raise BuildError(f"{self.switch}=1, but {reason}")
        return reason

    @contextmanager
    def made_aside(self, output: Path) -> Iterator[Path]:
        """A path to build at; moved to `output` at the end, so that nobody loads half a library."""
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rsd-build-", dir=output.parent) as aside:
            made = Path(aside, self.file_name)
            yield made
            made.replace(output)

    def write_report(self, report: BuildReport, folder: Path) -> None:
        (folder / self.report_name).write_text(json.dumps(asdict(report), indent=2) + "\n")

    def read_report(self, folder: Path) -> BuildReport | None:
        try:
            fields = json.loads((folder / self.report_name).read_text())
            return BuildReport(**{**fields, "targets": tuple(fields["targets"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class BuildReport:
    """What the last build did: written beside the library, read when that is loaded."""

    built: bool
    reason: str
    targets: tuple[str, ...] = ()  # what its machine code is for
    compiler: str = ""
    source_hash: str = ""


def find_program(chosen_by: str, environment: Mapping[str, str]) -> CompilerSearch | None:
    """The program that the environment variable `chosen_by` names; None if it is not set."""
    chosen = environment.get(chosen_by)
    if not chosen:
        return None
    path = shutil.which(chosen)
    if path is None:
        return CompilerSearch(None, f"{chosen_by}={chosen} is not a program that can be run")
    return CompilerSearch(Path(path), chosen_by)


def run_compilers(commands: Sequence[Sequence[str]]) -> None:
    """Runs all at once. Raises BuildError with the output of the first that fails."""
    running = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
    except OSError as error:
        for process in running:
            process.kill()
            process.communicate()
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    said = [process.communicate()[0].strip() for process in running]
    for process, command, words in zip(running, commands, said, strict=True):
        if process.returncode != 0:
            name = Path(command[0]).name
            raise BuildError(f"{name} failed with exit status {process.returncode}:\n{words}")


def build_here(
    library: NativeLibrary,
    environment: Mapping[str, str],
    find: Callable[[Mapping[str, str]], CompilerSearch],
    build: Callable[[Path, Path, Mapping[str, str]], BuildReport],
) -> int:
    """Builds into the package, for `python -m`; returns the exit status, 1 if the build failed."""
    output = PACKAGE / library.file_name
    try:
        sources = library.source_folder()
        if sources is None:
            raise BuildError("the sources (csrc/) are not beside this package")
        reason = library.skip_reason(environment, find)
        if reason is not None:
            raise BuildError(reason)
        report = build(output, sources, environment)
        library.write_report(report, PACKAGE)
    except (BuildError, OSError) as error:
        print(f"rsd_kernels: the {library.title} was not built: {error}", file=sys.stderr)
        return 1
    print(f"rsd_kernels: built {output} for {', '.join(report.targets)}")
    return 0
