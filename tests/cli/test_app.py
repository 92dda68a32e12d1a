"""The tree of commands, and how soon it answers."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import rsd_engine
from tests.cli.conftest import Rsd

ROOT = Path(__file__).resolve().parents[2]


def test_version(rsd: Rsd) -> None:
    result = rsd("--version")
    assert result.exit_code == 0
    assert result.stdout == f"rsd-engine {importlib.metadata.version('rsd-engine')}\n"


def test_help_names_the_commands(rsd: Rsd) -> None:
    result = rsd("--help")
    assert result.exit_code == 0
    assert all(
        name in result.stdout for name in ("bench", "chat", "demo", "generate", "doctor", "plan")
    )


def test_help_of_generate_shows_defaults(rsd: Rsd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets would be taken for markup and vanish."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = rsd("generate", "--help").stdout
    assert "(default: the threshold of the PRM's family)" in shown
    assert "constant:p, threshold[:threshold]" in shown
    assert r"(default: \n\n with a PRM)" in shown
    assert "[engine], [sampling] and [generate]" in shown


def test_help_of_the_rest_shows_all_and_no_default_twice(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "TOML file with a [demo] table." in rsd("demo", "--help").stdout
    for command in ("demo", "generate", "plan", "profile"):
        for line in rsd(command, "--help").stdout.splitlines():
            assert line.count("default:") <= 1


def test_the_package_says_its_version() -> None:
    assert rsd_engine.__version__ == importlib.metadata.version("rsd-engine")


def test_doctor(rsd: Rsd) -> None:
    result = rsd("doctor")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("torch", "executor", "GiB of memory available"))


@pytest.mark.parametrize("args", [["--frobnicate"], ["demo", "0"], ["demo", "many"], ["nothing"]])
def test_wrong_use_is_exit_code_2(rsd: Rsd, args: list[str]) -> None:
    assert rsd(*args).exit_code == 2


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["bench", "serve", "--help"],
        *([name, "--help"] for name in ("chat", "demo", "generate", "inspect", "plan")),
    ],
)
def test_help_needs_no_torch(args: list[str]) -> None:
    """A package that stands in for `rsd_engine` shows what the command line itself imports."""
    code = f"""
        import sys, types
        package = types.ModuleType("rsd_engine")
        package.__path__ = [{str(ROOT / "rsd_engine")!r}]
        sys.modules["rsd_engine"] = package
        from rsd_engine.cli.app import app
        app({args!r}, standalone_mode=False)
        assert not {{"torch", "transformers", "tokenizers", "numpy", "openai"}} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_module_runs_like_the_script() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rsd_engine.cli", "--version"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rsd-engine ")
