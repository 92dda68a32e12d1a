"""The pre-commit hooks are local, and the one that forbids host synchronisation finds nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> dict[str, dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    return {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}


def test_hooks_use_the_installed_tools(hooks: dict[str, dict[str, Any]]) -> None:
    assert {hook["language"] for hook in hooks.values()} == {"system", "pygrep"}


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="clang-format is not installed")
def test_cpp_and_cuda_sources_are_formatted(hooks: dict[str, dict[str, Any]]) -> None:
    assert hooks["clang-format"]["types_or"] == ["c", "c++", "cuda"]
    endings = {".cpp", ".h", ".cu", ".cuh"}
    folders = (ROOT / "csrc", ROOT / "bench", ROOT / "tests")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in endings]
    assert {path.suffix for path in files} == endings
    command = ["clang-format", "--dry-run", "-Werror", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("line", "forbidden"),
    [
        ("value = flag.item()", True),
        ("    rows = batch.tolist()", True),
        ("torch.cuda.synchronize()", True),
        ("length = state.length.cpu()", True),
        ("value = int(state.flag)", False),
        ("items = table.items()", False),
        ("value = flag.item()  # host read: the executor's own flag", False),
        ("value = flag.item()  # host read:", True),
    ],
)
def test_host_sync_pattern(hooks: dict[str, dict[str, Any]], line: str, forbidden: bool) -> None:
    assert bool(re.search(hooks["no-host-sync"]["entry"], line)) is forbidden


def test_no_host_sync_in_the_loop_and_the_kernels(hooks: dict[str, dict[str, Any]]) -> None:
    hook = hooks["no-host-sync"]
    hits, seen = [], 0
    for path in sorted([*ROOT.glob("rsd_engine/**/*.py"), *ROOT.glob("kernels/**/*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if not re.search(hook["files"], name) or re.search(hook["exclude"], name):
            continue
        seen += 1
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(hook["entry"], line):
                hits.append(f"{name}:{number}: {line.strip()}")
    assert seen
    assert hits == []
