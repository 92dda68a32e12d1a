"""A copy of a kernel with a bug in it, which the checks must catch."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from types import ModuleType


def broken(module: ModuleType, folder: Path, right: str, wrong: str) -> ModuleType:
    """The module with one piece of its source replaced: a bug that a test must catch."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(right) == 1, f"{right!r} must stand in {module.__name__} once"
    path = folder / "broken_kernel.py"
    path.write_text(source.replace(right, wrong))
    spec = util.spec_from_file_location("broken_kernel", path)
    assert spec is not None and spec.loader is not None
    copy = util.module_from_spec(spec)
    sys.modules[spec.name] = copy
    spec.loader.exec_module(copy)
    return copy
