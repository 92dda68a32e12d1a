"""Where kernels are interpreted, every check also looks for what only a device would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.kernels.harness.child import INTERPRETED


@pytest.fixture(autouse=True)
def _as_on_a_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Races are found, and values are as unkind as there, also those of new memory."""
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
