"""What an install makes: with nvcc, without it, told to skip or to insist, with a failing one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from rsd_kernels import cuda_build, cuda_library

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("rsd_kernels", cuda_build.LIBRARY_NAME)
# One target, no PTX: the build is under test here, not the kernels.
QUICK_ARCH = "80"


@dataclass(frozen=True)
class Build:
    code: int
    said: str
    folder: Path

    @property
    def report(self) -> cuda_build.BuildReport | None:
        return cuda_build.BuildReport.read(self.folder / "rsd_kernels")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that the checkout's own library stays as it is."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy / name)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", cuda_build.REPORT_NAME)
    for name in ("csrc", "kernels", "rsd_engine"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without anything that steers the CUDA build, plus `changes`."""
    steering = ("RSD_NVCC", "RSD_BUILD_CUDA", "RSD_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH")
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


def build(tree: Path, **changes: str) -> Build:
    folder = tree / "made"
    done = run_setup(tree, "build", "--build-lib", str(folder), **changes)
    return Build(done.returncode, done.stderr + done.stdout, folder)


def fake_nvcc(folder: Path) -> Path:
    """A compiler that finds an error in everything."""
    folder.mkdir(parents=True)
    script = folder / "nvcc"
    script.write_text("#!/bin/sh\necho 'a.cu(1): error: no such luck' >&2\nexit 2\n")
    script.chmod(0o755)
    return script


def needs_nvcc() -> None:
    search = cuda_build.find_nvcc(os.environ)
    if search.path is None:
        pytest.skip(search.reason)


def test_without_nvcc_the_build_succeeds_and_says_why(tree: Path) -> None:
    made = build(tree, RSD_NVCC="/nonexistent")
    assert made.code == 0, made.said
    assert not (made.folder / LIBRARY).exists()
    assert made.report is not None
    assert not made.report.built
    assert made.report.reason == "RSD_NVCC=/nonexistent is not a program that can be run"
    library, status = cuda_library.load_from(made.folder / "rsd_kernels")
    assert library is None
    assert status.state == "absent"
    assert "RSD_NVCC=/nonexistent" in status.reason


def test_with_nvcc_the_library_is_built_and_loads(tree: Path) -> None:
    needs_nvcc()
    made = build(tree)
    assert made.code == 0, made.said
    assert made.report is not None
    assert made.report.built, made.report.reason
    assert made.report.archs == (QUICK_ARCH,)
    library, status = cuda_library.load_from(made.folder / "rsd_kernels")
    assert library is not None, status
    assert status.state == "loaded"
    # No rows: checks the call, and needs no device.
    library.check(library.decode_projection(*[None] * 4, *[0] * 9, None), "decode_projection")
    with pytest.raises(cuda_library.CudaLibraryError, match=r"a size is out of range \(code -2\)"):
        library.check(library.decode_projection(*[None] * 4, 5, *[0] * 8, None), "it")


def test_library_of_other_sources_is_refused(tree: Path) -> None:
    needs_nvcc()
    with (tree / "csrc" / "decode_projection.cu").open("a") as source:
        source.write("// not the source of this checkout\n")
    made = build(tree)
    assert made.report is not None
    assert made.report.built, made.report.reason
    library, status = cuda_library.load_from(made.folder / "rsd_kernels")
    assert library is None
    assert status.state == "refused"
    assert "built from other sources" in status.reason


def test_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / cuda_build.LIBRARY_NAME).write_text("not a library")
    library, status = cuda_library.load_from(tmp_path)
    assert library is None
    assert status.state == "refused"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("build_ext", "--inplace"), "kernels/rsd_kernels"),
        (("build", "--build-lib", "made"), "made/rsd_kernels"),
    ],
)
def test_skipping_removes_an_older_library(
    tree: Path, command: tuple[str, ...], place: str
) -> None:
    old = tree / place / cuda_build.LIBRARY_NAME
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text("an older build")
    done = run_setup(tree, *command, RSD_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert not old.exists()
    report = cuda_build.BuildReport.read(old.parent)
    assert report is not None
    assert report.reason == "RSD_BUILD_CUDA=0"


def test_failing_compiler_leaves_an_install_without_library(tree: Path) -> None:
    old = tree / "kernels" / LIBRARY
    old.write_text("an older build")
    nvcc = fake_nvcc(tree / "toolkit" / "bin")
    done = run_setup(tree, "build_ext", "--inplace", CUDA_HOME=str(nvcc.parents[1]))
    assert done.returncode == 0, done.stderr
    assert "no such luck" in done.stderr + done.stdout
    assert not old.exists()
    report = cuda_build.BuildReport.read(old.parent)
    assert report is not None
    assert "no such luck" in report.reason


@pytest.mark.parametrize("failure", ["no nvcc", "nvcc fails"])
def test_required_library_that_cannot_be_built_is_an_error(tree: Path, failure: str) -> None:
    nvcc = fake_nvcc(tree / "toolkit")
    chosen = "/nonexistent" if failure == "no nvcc" else str(nvcc)
    made = build(tree, RSD_BUILD_CUDA="1", RSD_NVCC=chosen)
    assert made.code != 0
    assert ("/nonexistent" if failure == "no nvcc" else "no such luck") in made.said


def test_unknown_switch_is_an_error(tree: Path) -> None:
    made = build(tree, RSD_BUILD_CUDA="yes")
    assert made.code != 0
    assert "RSD_BUILD_CUDA='yes' is not allowed: 0 skips" in made.said


@pytest.mark.parametrize("with_nvcc", [False, True])
def test_wheel_works_away_from_the_checkout(tree: Path, tmp_path: Path, with_nvcc: bool) -> None:
    if with_nvcc:
        needs_nvcc()
    changes = {} if with_nvcc else {"RSD_NVCC": "/nonexistent"}
    checkpoint = Path("rsd_engine", "demo", "checkpoints", "toy", "model.safetensors")
    (tree / checkpoint).parent.mkdir(parents=True)
    (tree / checkpoint).write_text("data deep inside the package")
    done = run_setup(tree, "bdist_wheel", "--dist-dir", str(tmp_path / "dist"), **changes)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "dist").iterdir()
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"rsd_engine-0.1.0-py3-none-{platform if with_nvcc else 'any'}.whl"
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {"rsd_engine/py.typed", "rsd_kernels/py.typed", "rsd_kernels/ops.py"} <= names
    assert {"rsd_kernels/csrc/rsd_kernels.h", checkpoint.as_posix()} <= names
    assert not [name for name in names if name.startswith(("tests/", "kernels/", "csrc/"))]
    state = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
    )
    assert state.returncode == 0, state.stderr
    assert state.stdout.strip() == ("loaded" if with_nvcc else "absent")


PROBE = textwrap.dedent(
    """
    import pathlib, rsd_engine, rsd_kernels
    from rsd_kernels import cuda_build, cuda_library
    site = pathlib.Path.cwd() / "site"
    assert site in pathlib.Path(rsd_engine.__file__).parents
    assert cuda_build.source_folder() == site / "rsd_kernels" / "csrc"
    print(cuda_library.status().state)
    """
)


def test_every_folder_with_code_is_a_package() -> None:
    """setuptools leaves a folder out, silently, that lacks an __init__.py."""
    for package in (ROOT / "rsd_engine", ROOT / "kernels" / "rsd_kernels"):
        folders = {path.parent for path in package.rglob("*.py")}
        assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_nvcc_is_searched_in_the_stated_order(tmp_path: Path) -> None:
    places = {
        name: fake_nvcc(tmp_path / name / "bin") for name in ("chosen", "home", "root", "path")
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
    with pytest.raises(cuda_build.CudaBuildError, match="RSD_CUDA_ARCHS"):
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
