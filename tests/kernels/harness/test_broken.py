"""A bug that cannot be put in is an error of its own, never the failure a check expects."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.harness.broken import broken


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    module = ModuleType("some_kernel")
    module.__file__ = str(tmp_path / "some_kernel.py")
    (tmp_path / "some_kernel.py").write_text("A = 1\nB = 2\nC = 1\n")
    return module


def test_the_copy_has_the_bug(module: ModuleType, tmp_path: Path) -> None:
    assert broken(module, tmp_path, "B = 2", "B = 3").B == 3


@pytest.mark.parametrize(("text", "count"), [("D = 4", 0), ("= 1", 2)])
def test_text_that_is_not_there_exactly_once(
    module: ModuleType, tmp_path: Path, text: str, count: int
) -> None:
    with pytest.raises(LookupError, match=f"some_kernel: '{text}' is {count} times in the text"):
        broken(module, tmp_path, text, "D = 5")
