"""A copy of a kernel with a bug in it, which the checks must catch."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from types import ModuleType

from tests.text import replace_once


def broken(module: ModuleType, folder: Path, right: str, wrong: str) -> ModuleType:
    """The module with one piece of its source replaced: a bug that a test must catch.

    Raises:
        LookupError: `right` does not stand in the source exactly once.
    """
    source = Path(str(module.__file__)).read_text()
    try:
        source = replace_once(source, right, wrong)
    except LookupError as error:
        raise LookupError(f"{module.__name__}: {error}") from None
    path = folder / "broken_kernel.py"
    path.write_text(source)
    spec = util.spec_from_file_location("broken_kernel", path)
    assert spec is not None and spec.loader is not None
    copy = util.module_from_spec(spec)
    sys.modules[spec.name] = copy
    spec.loader.exec_module(copy)
    return copy
