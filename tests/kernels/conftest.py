"""In the interpreter every check also watches for races and for values only a device would give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.kernels.harness.ahead import files_of, only_waits
from tests.kernels.harness.child import AHEAD, INTERPRETED

MANY = 1000  # tests: with fewer, nothing is worth starting before its turn


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing waits for checks that run ahead while there are other tests to run."""
    if len(items) > MANY:
        items.sort(key=only_waits)


def pytest_collection_finish(session: pytest.Session) -> None:
    """In a run of the whole suite, checks run beside all other tests."""
    if len(session.items) > MANY and not session.config.option.collectonly:
        AHEAD.start(files_of(session.items))


def pytest_sessionfinish() -> None:
    AHEAD.close()


@pytest.fixture(autouse=True)
def _as_on_a_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Finds races; masked values and new memory are as arbitrary as on a device."""
    if not INTERPRETED:
        yield
        return
    from tests.kernels.interpreter.races import watching
    from tests.kernels.interpreter.values import as_on_a_device

    watches_itself = getattr(request.module, "WATCHES_ITSELF", False)
    with as_on_a_device(), nullcontext() if watches_itself else watching():
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
        yield
        torch.use_deterministic_algorithms(False)
