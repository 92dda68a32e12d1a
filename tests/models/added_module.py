"""A module added to a package for a while, from a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path

from rsd_engine.models.registry import decoder_families, reward_families


@contextmanager
def added_module(package: str, name: str, source: str, folder: Path) -> Iterator[None]:
    """`package.name` with this source, as if the file stood beside the package's own."""
    (folder / f"{name}.py").write_text(source)
    path = sys.modules[package].__path__
    path.append(str(folder))
    _look_again()
    try:
        yield
    finally:
        path.remove(str(folder))
        sys.modules.pop(f"{package}.{name}", None)
        _look_again()


def _look_again() -> None:
    invalidate_caches()
    decoder_families.cache_clear()
    reward_families.cache_clear()
