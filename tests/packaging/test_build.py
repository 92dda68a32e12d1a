"""What an install makes: with compilers, without, told to skip or to insist, with failing ones."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rsd_kernels.cpu import build as cpu_build
from rsd_kernels.cpu import library as cpu_library
from rsd_kernels.cuda import build as cuda_build
from rsd_kernels.cuda import library as cuda_library
from rsd_kernels.native import build as native_build
from rsd_kernels.native.build import BuildReport, NativeLibrary

ROOT = Path(__file__).resolve().parents[2]
# One target, no PTX: the build is under test here, not the kernels.
QUICK_ARCH = "80"


@dataclass(frozen=True)
class Kind:
    """One of the two libraries."""

    name: str
    library: NativeLibrary
    find: Callable[..., native_build.CompilerSearch]
    load_from: Callable[[Path], tuple[Any, Any]]
    compiler: str  # the variable that names it
    source: str  # one of its sources

    def needs_compiler(self) -> None:
        search = self.find(os.environ)
        if search.path is None:
            pytest.skip(search.reason)

    @property
    def only(self) -> dict[str, str]:
        """Variables that leave the other library out."""
        other = next(kind for kind in KINDS.values() if kind is not self)
        return {other.library.switch: "0"}


KINDS = {
    "cuda": Kind(
        "cuda",
        cuda_build.LIBRARY,
        cuda_build.find_nvcc,
        cuda_library.load_from,
        "RSD_NVCC",
        "decode_projection.cu",
    ),
    "cpu": Kind(
        "cpu",
        cpu_build.LIBRARY,
        cpu_build.find_compiler,
        cpu_library.load_from,
        "RSD_CXX",
        "cpu/library.cpp",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@dataclass(frozen=True)
class Build:
    code: int
    said: str
    folder: Path

    def report(self, kind: Kind) -> BuildReport:
        report = kind.library.read_report(self.folder / "rsd_kernels")
        assert report is not None
        return report


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copied_tree(tmp_path)


def copied_tree(folder: Path) -> Path:
    """A copy of what a build reads, so that the checkout's own libraries stay as they are."""
    copy = folder / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy / name)
    reports = [kind.library.report_name for kind in KINDS.values()]
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", *reports)
    for name in ("csrc", "kernels", "rsd_engine"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without the variables that control builds, plus `changes`."""
    steering = {
        "RSD_NVCC", "RSD_BUILD_CUDA", "RSD_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH",
        "RSD_CXX", "RSD_BUILD_CPU", "CXX",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return {**kept, "RSD_CUDA_ARCHS": QUICK_ARCH, **changes}


def run_setup(tree: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=tree,
        env=environment(**changes),
        capture_output=True,
        text=True,
    )


def build(tree: Path, *and_then: str, **changes: str) -> Build:
    folder = tree / "made"
    done = run_setup(tree, "build", "--build-lib", str(folder), *and_then, **changes)
    return Build(done.returncode, done.stderr + done.stdout, folder)


CHECKPOINT = Path("rsd_engine", "demo", "checkpoints", "toy", "model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Build]:
    """Builds one library, or none, and a wheel in `dist`: once, since compiling takes seconds.

    The CPU library is not optimised: the build is under test here, not the kernels.
    """

    @functools.cache
    def make(name: str) -> Build:
        changes = {kind.library.switch: "0" for kind in KINDS.values()}
        if name in KINDS:
            KINDS[name].needs_compiler()
            del changes[KINDS[name].library.switch]
        if name == "cpu":
            changes["RSD_CXX"] = str(hasty_compiler(tmp_path_factory.mktemp("compiler")))
        tree = copied_tree(tmp_path_factory.mktemp(name))
        (tree / CHECKPOINT).parent.mkdir(parents=True)
        (tree / CHECKPOINT).write_text("data deep inside the package")
        return build(tree, "bdist_wheel", "--dist-dir", str(tree / "dist"), **changes)

    return make


def hasty_compiler(folder: Path) -> Path:
    """The C++ compiler of this machine, without its optimisations."""
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\nexec {cpu_build.find_compiler(os.environ).path} "$@" -O0\n')
    script.chmod(0o755)
    return script


def fake_compiler(folder: Path, name: str = "nvcc") -> Path:
    """A compiler that rejects everything."""
    folder.mkdir(parents=True)
    script = folder / name
    script.write_text("#!/bin/sh\necho 'a.cu(1): error: no such luck' >&2\nexit 2\n")
    script.chmod(0o755)
    return script


def test_without_compilers_the_build_succeeds_and_says_why(tree: Path) -> None:
    made = build(tree, RSD_NVCC="/nonexistent", RSD_CXX="/nonexistent")
    assert made.code == 0, made.said
    for kind in KINDS.values():
        assert not (made.folder / "rsd_kernels" / kind.library.file_name).exists()
        reason = f"{kind.compiler}=/nonexistent is not a program that can be run"
        assert made.report(kind) == BuildReport(built=False, reason=reason)
        library, status = kind.load_from(made.folder / "rsd_kernels")
        assert library is None
        assert str(status) == f"absent ({reason})"


def test_with_nvcc_the_cuda_library_is_built_and_loads(made: Callable[[str], Build]) -> None:
    kind, cuda = KINDS["cuda"], made("cuda")
    assert cuda.code == 0, cuda.said
    assert cuda.report(kind).built, cuda.report(kind).reason
    assert cuda.report(kind).targets == (QUICK_ARCH,)
    library, status = cuda_library.load_from(cuda.folder / "rsd_kernels")
    assert library is not None, status
    assert status.state == "loaded"
    # No rows: checks the call, and needs no device.
    none, many = cuda_library.Projection(num_rows=0), cuda_library.Projection(num_rows=5)
    library.check(library.decode_projection(none, 0, None), "decode_projection")
    with pytest.raises(cuda_library.CudaLibraryError, match=r"a size is out of range \(code -2\)"):
        library.check(library.decode_projection(many, 0, None), "it")


def test_with_a_compiler_the_cpu_library_is_built_and_loads(made: Callable[[str], Build]) -> None:
    kind, cpu = KINDS["cpu"], made("cpu")
    assert cpu.code == 0, cpu.said
    assert cpu.report(kind).built, cpu.report(kind).reason
    assert "baseline" in cpu.report(kind).targets
    library, status = cpu_library.load_from(cpu.folder / "rsd_kernels")
    assert library is not None, status
    assert status.state == "loaded"
    assert library.isa in cpu.report(kind).targets
    with pytest.raises(ValueError, match=r"isa 'z80': this machine cannot run .* \(code -6\)"):
        library.choose_isa("z80")


def test_cpu_library_without_openmp_is_refused(made: Callable[[str], Build]) -> None:
    """Its calls go to the OpenMP that torch has loaded; where there is none it says so."""
    file = made("cpu").folder / "rsd_kernels" / "librsd_cpu.so"
    code = f"import ctypes; ctypes.CDLL({str(file)!r})"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert re.search(r"undefined symbol: (GOMP|omp)_", done.stderr)


def test_library_of_other_sources_is_refused(
    made: Callable[[str], Build], kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sources change after the build."""
    library, status = kind.load_from(made(kind.name).folder / "rsd_kernels")
    assert library is not None, status
    package = tmp_path / "kernels" / "rsd_kernels"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    monkeypatch.setattr(native_build, "PACKAGE", package)
    with (tmp_path / "csrc" / kind.source).open("a") as source:
        source.write("// not the source of this library\n")
    library, status = kind.load_from(made(kind.name).folder / "rsd_kernels")
    assert library is None
    assert status.state == "refused"
    assert "built from other sources" in status.reason
    assert f"rebuild it: python -m {kind.library.module}" in status.reason


def test_file_that_is_no_library_is_refused(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / kind.library.file_name).write_text("not a library")
    library, status = kind.load_from(tmp_path)
    assert library is None
    assert status.state == "refused"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("build_ext", "--inplace"), "kernels/rsd_kernels"),
        (("build", "--build-lib", "made"), "made/rsd_kernels"),
    ],
)
def test_skipping_removes_older_libraries(tree: Path, command: tuple[str, ...], place: str) -> None:
    folder = tree / place
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS.values():
        (folder / kind.library.file_name).write_text("an older build")
    done = run_setup(tree, *command, RSD_BUILD_CUDA="0", RSD_BUILD_CPU="0")
    assert done.returncode == 0, done.stderr
    for kind in KINDS.values():
        assert not (folder / kind.library.file_name).exists()
        report = kind.library.read_report(folder)
        assert report is not None
        assert report.reason == f"{kind.library.switch}=0"


def test_failing_compiler_leaves_an_install_without_library(tree: Path, kind: Kind) -> None:
    folder = tree / "kernels" / "rsd_kernels"
    (folder / kind.library.file_name).write_text("an older build")
    compiler = fake_compiler(tree / "toolkit" / "bin")
    changes = {**kind.only, kind.compiler: str(compiler)}
    done = run_setup(tree, "build_ext", "--inplace", **changes)
    assert done.returncode == 0, done.stderr
    assert "no such luck" in done.stderr + done.stdout
    assert not (folder / kind.library.file_name).exists()
    report = kind.library.read_report(folder)
    assert report is not None
    assert "no such luck" in report.reason


@pytest.mark.parametrize("failure", ["no compiler", "it fails"])
def test_required_library_that_cannot_be_built_is_an_error(
    tree: Path, kind: Kind, failure: str
) -> None:
    compiler = fake_compiler(tree / "toolkit")
    chosen = "/nonexistent" if failure == "no compiler" else str(compiler)
    made = build(tree, **kind.only, **{kind.library.switch: "1", kind.compiler: chosen})
    assert made.code != 0
    assert ("/nonexistent" if failure == "no compiler" else "no such luck") in made.said


def test_unknown_switch_is_an_error(tree: Path, kind: Kind) -> None:
    made = build(tree, **kind.only, **{kind.library.switch: "yes"})
    assert made.code != 0
    assert f"{kind.library.switch}='yes' is not allowed: 0 skips" in made.said


@pytest.mark.parametrize("built", ["none", "cuda", "cpu"])
def test_wheel_works_away_from_the_checkout(
    made: Callable[[str], Build], tmp_path: Path, built: str
) -> None:
    done = made(built)
    assert done.code == 0, done.said
    [wheel] = done.folder.with_name("dist").iterdir()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    tag = "any" if built == "none" else platform
    assert wheel.name == f"rsd_engine-0.1.0-py3-none-{tag}.whl"
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {"rsd_engine/py.typed", "rsd_kernels/py.typed", "rsd_kernels/ops.py"} <= names
    assert {"rsd_kernels/csrc/rsd_kernels.h", "rsd_kernels/csrc/cpu/rsd_cpu.h"} <= names
    assert CHECKPOINT.as_posix() in names
    assert not [name for name in names if name.startswith(("tests/", "kernels/", "csrc/"))]
    state = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
    )
    assert state.returncode == 0, state.stderr
    found = dict(line.split() for line in state.stdout.splitlines())
    assert found == {name: "loaded" if built == name else "absent" for name in KINDS}


PROBE = textwrap.dedent(
    """
    import pathlib, rsd_engine, rsd_kernels
    from rsd_kernels.cpu import build as cpu_build
    from rsd_kernels.cpu import library as cpu_library
    from rsd_kernels.cuda import build as cuda_build
    from rsd_kernels.cuda import library as cuda_library
    site = pathlib.Path.cwd() / "site"
    assert site in pathlib.Path(rsd_engine.__file__).parents
    assert cuda_build.LIBRARY.source_folder() == site / "rsd_kernels" / "csrc"
    assert cpu_build.LIBRARY.source_folder() == site / "rsd_kernels" / "csrc" / "cpu"
    print("cuda", cuda_library.status().state)
    print("cpu", cpu_library.status().state)
    """
)


def test_every_folder_with_code_is_a_package() -> None:
    """setuptools leaves a folder out, silently, that lacks an __init__.py."""
    for package in (ROOT / "rsd_engine", ROOT / "kernels" / "rsd_kernels"):
        folders = {path.parent for path in package.rglob("*.py")}
        assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_nvcc_is_searched_in_the_stated_order(tmp_path: Path) -> None:
    places = {
        name: fake_compiler(tmp_path / name / "bin") for name in ("chosen", "home", "root", "path")
    }
    known = {
        "RSD_NVCC": str(places["chosen"]),
        "CUDA_HOME": str(tmp_path / "home"),
        "CUDA_PATH": str(tmp_path / "root"),
        "PATH": str(tmp_path / "path" / "bin"),
    }
    for name in ("chosen", "home", "root", "path"):
        assert cuda_build.find_nvcc(known).path == places[name]
        del known[next(iter(known))]


def test_compiler_is_searched_in_the_stated_order(tmp_path: Path) -> None:
    names = ("chosen", "cxx", "c++", "g++", "clang++")
    places = {name: fake_compiler(tmp_path / name, name) for name in names}
    known = {
        "RSD_CXX": str(places["chosen"]),
        "CXX": str(places["cxx"]),
        "PATH": os.pathsep.join(str(tmp_path / name) for name in names[2:]),
    }
    assert cpu_build.find_compiler(known).path == places["chosen"]
    del known["RSD_CXX"]
    assert cpu_build.find_compiler(known).path == places["cxx"]
    del known["CXX"]
    for name in names[2:]:
        assert cpu_build.find_compiler(known).path == places[name]
        places[name].unlink()
    assert cpu_build.find_compiler(known).path is None


@pytest.mark.parametrize(
    ("archs", "flags"),
    [
        ("80", ["-gencode=arch=compute_80,code=[sm_80]"]),
        (
            "sm_80, 100+PTX",
            [
                "-gencode=arch=compute_80,code=[sm_80]",
                "-gencode=arch=compute_100,code=[sm_100,compute_100]",
            ],
        ),
        ("90a", ["-gencode=arch=compute_90a,code=[sm_90a]"]),
    ],
)
def test_arch_list(archs: str, flags: list[str]) -> None:
    assert cuda_build.gencode_flags(archs) == flags


@pytest.mark.parametrize("archs", ["hopper", "8", "90x", " ; "])
def test_bad_arch_list_is_named(archs: str) -> None:
    with pytest.raises(native_build.BuildError, match="RSD_CUDA_ARCHS"):
        cuda_build.gencode_flags(archs)


def test_constraints_pin_every_dependency_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_.-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^A-Za-z0-9_-]", text)[0].lower().replace("_", "-") for text in wanted}
    pinned = {pin.partition("==")[0].replace("_", "-") for pin in pins}
    # setuptools builds, it does not run: any version from the floor on will do
    assert names - pinned == {"setuptools"}
