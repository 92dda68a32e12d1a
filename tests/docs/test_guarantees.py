"""The table of promises names tests that exist, and no more cases than there are."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.docs.documents import ROOT, document

PAGE = document("docs/guarantees.md")
_ROW = re.compile(r"^\| (?!promise)([^|]+) \| ([^|]+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Promise:
    text: str
    files: tuple[str, ...]
    in_ci: int
    slow: int


PROMISES = [
    Promise(text, tuple(re.findall("`([^`]+)`", files)), int(in_ci), int(slow))
    for text, files, in_ci, slow in _ROW.findall(PAGE.text)
]


def test_every_row_of_the_tables_is_read() -> None:
    rows = [line for line in PAGE.text.splitlines() if line.startswith("|")]
    tables = PAGE.text.count("| promise |")
    assert len(PROMISES) == len(rows) - 2 * tables >= 10


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text[:40])
def test_a_promise_has_tests(promise: Promise) -> None:
    assert promise.files and promise.in_ci
    for name in promise.files:
        assert re.fullmatch(r"tests/[\w/]+/test_\w+\.py", name), name
        assert (ROOT / name).is_file(), f"there is no {name}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["in_ci", "slow"])
def test_there_are_as_many_cases(kind: str) -> None:
    found = collected("slow" if kind == "slow" else "not slow")
    for promise in PROMISES:
        assert sum(found[name] for name in promise.files) >= getattr(promise, kind), promise


def collected(marks: str) -> Counter[str]:
    """How many cases pytest finds in each file of the table."""
    names = sorted({name for promise in PROMISES for name in promise.files})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks, *names]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    return Counter(line.partition("::")[0] for line in listed.stdout.splitlines() if "::" in line)
