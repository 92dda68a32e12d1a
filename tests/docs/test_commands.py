"""Every command that a document shows exists, and so do its options."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import sys
import tomllib
from typing import Any
from unittest import mock

import pytest
import typer

from rsd_engine.cli.app import app
from tests.docs.documents import DOCUMENTS, ROOT, Document

_OTHERS = (
    "pip", "curl", "pre-commit", "ruff", "mypy", "cd", ".", "python3", "git", "lm_eval",
    "serve", "vllm",
)  # fmt: skip
_STARTS = ("rsd ", "python -m ", "pytest")


def commands(document: Document) -> list[list[str]]:
    """The words of every command in a document: of shell blocks, prompts and inline code."""
    lines = [code for code in document.inline_code if code.startswith(_STARTS)]
    lines = [line for line in lines if not line.endswith(".NAME")]  # to be filled in
    for block in document.blocks("bash"):
        lines += block.replace("\\\n", " ").splitlines()
    for block in document.blocks(""):
        joined = block.replace("\\\n", " ")
        lines += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    parts = [part for line in lines for part in re.split(r" && |;", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def check(words: list[str]) -> None:
    """Raises AssertionError unless a command of ours is known, with every option."""
    if re.match(r"[A-Z_]+=", words[0]):  # sets a variable, maybe for what follows
        if words[1:]:
            check(words[1:])
    elif words[0] == "rsd":
        check_rsd(words[1:])
    elif words[:2] == ["python", "-m"]:
        subcommand = tuple(word for word in words[3:4] if word.isidentifier())
        check_module(words[2], options_of(words[3:]), subcommand)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[0] == "pytest":
        check_pytest(words[1:])
    else:
        assert words[0].rpartition("/")[2] in _OTHERS, f"what is {words[0]}?"


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}


def check_rsd(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    assert words[0] in group.commands, f"rsd has no command {words[0]}"
    command = group.commands[words[0]]
    if words[1:] and words[1] in getattr(command, "commands", {}):
        command = command.commands[words[1]]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert options_of(words) <= known, f"rsd {words[0]} lacks {options_of(words) - known}"


def check_module(module: str, options: set[str], subcommand: tuple[str, ...] = ()) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__"), f"{module} cannot be run"
    for option in options:
        assert re.search(rf"{option}\b", usage(module, subcommand)), f"{module} has no {option}"


@functools.cache
def usage(module: str, subcommand: tuple[str, ...] = ()) -> str:
    """What `python -m MODULE --help` prints, or that of its subcommand."""
    with (
        mock.patch.object(sys, "argv", [module, *subcommand, "--help"]),
        contextlib.redirect_stdout(io.StringIO()) as shown,
        contextlib.suppress(SystemExit),
    ):
        runpy.run_module(module, run_name="__main__")
    return shown.getvalue()


def check_pytest(words: list[str]) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = settings["tool"]["pytest"]["ini_options"]["markers"]
    if "-m" in words:
        marker = words[words.index("-m") + 1]
        assert marker in {text.partition(":")[0] for text in markers}
    for word in words:
        assert "/" not in word or (ROOT / word).exists(), f"pytest: no {word}"


# A command of a package that was imported before runs from its file again, as `python -m` does.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands(document: Document) -> None:
    for words in commands(document):
        check(words)


def test_the_test_sees_what_it_should() -> None:
    for wrong in (
        "rsd solve", "rsd plan --speed=3", "rsd bench serve --speed=3",
        "python -m bench.nothing", "python -m bench.gpu --fast", "python -m bench",
        "pytest -m quick", "make all", "python none.py", "X=1 rsd solve",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))
    check(shlex.split("rsd generate --draft=x -n 2"))
