"""A package that is not installed, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_package(package: str, extra: str) -> Iterator[None]:
    """Makes the failed import of an optional package say how to install it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"this needs {package}, which is not installed ({error}); pip install "
            f'"rsd-engine[{extra}]"'
        ) from None
