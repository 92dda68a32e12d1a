"""Named ranges for profilers: NVTX where there is a GPU, and nothing to pay for elsewhere."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

_NOTHING: AbstractContextManager[None] = nullcontext()


def annotate(name: str) -> AbstractContextManager[None]:
    """A range of this name on the host's timeline."""
    if not _on_gpu():
        return _NOTHING
    ranged: AbstractContextManager[None] = torch.cuda.nvtx.range(name)
    return ranged


@functools.cache
def _on_gpu() -> bool:
    return torch.cuda.is_available()
