"""Checkpoints whose layers are in few bits on every device, with or without their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import (
    Checkpoint,
    GroupedSource,
    RewrittenCheckpoint,
    StoredTensor,
)
from rsd_engine.models.checkpoints.grouped_at_load import GroupedAtLoad
from rsd_kernels.grouped.matrix import GroupedMatrix


class FewBits(RewrittenCheckpoint):
    """Another checkpoint, rounded as for a GPU. A CPU reads what the few bits stand for.

    Args:
        checkpoint: the plain one.
        word: what it is rounded to, "fp8", "int8" or "int4".
        fill: whether matrices get their values; if not, nothing is read.
    """

    def __init__(self, checkpoint: Checkpoint, word: str, *, fill: bool = True) -> None:
        super().__init__(GroupedAtLoad(checkpoint, word))
        self._fill = fill

    def tensors(self) -> Mapping[str, StoredTensor]:
        return {
            name: self._read_from(tensor, tensor.grouped) if tensor.grouped else tensor
            for name, tensor in self._plain.tensors().items()
        }

    def _read_from(self, tensor: StoredTensor, source: GroupedSource) -> StoredTensor:
        if not self._fill:
            source = replace(source, make=partial(_without_values, source.on_meta))
        read = partial(_expanded, source)
        return replace(tensor, dtype=torch.float32, read=read, grouped=source)


def _expanded(source: GroupedSource) -> Tensor:
    return source.make(torch.device("cpu")).expand()


def _without_values(like: GroupedMatrix, device: torch.device) -> GroupedMatrix:
    def empty(held: Tensor) -> Tensor:
        return torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=device)

    return replace(like, values=empty(like.values), scales=empty(like.scales))
