"""Checkpoints whose layers are rounded to few bits when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import Checkpoint, GroupedSource, StoredTensor
from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind

_LARGEST = {ValueKind.INT4: 7.0, ValueKind.INT8: 127.0, ValueKind.FP8: 448.0}


class FewBits(Checkpoint):
    """Another checkpoint, with the matrices of its layers in groups of 32 inputs.

    Args:
        checkpoint: the plain one.
        kind: of the values.
        fill: whether matrices get their values; if not, nothing is read.
    """

    def __init__(self, checkpoint: Checkpoint, kind: ValueKind, *, fill: bool = True) -> None:
        self.source = f"{checkpoint.source} in {kind.value}"
        self._checkpoint = checkpoint
        self._kind = kind
        self._fill = fill

    def config(self) -> Mapping[str, Any]:
        return self._checkpoint.config()

    def tensors(self) -> Mapping[str, StoredTensor]:
        return {
            name: self._rounded(tensor) if name.endswith("proj.weight") else tensor
            for name, tensor in self._checkpoint.tensors().items()
        }

    def tokenizer(self) -> Any:
        return self._checkpoint.tokenizer()

    def generation_config(self) -> dict[str, Any] | None:
        return self._checkpoint.generation_config()

    def _rounded(self, tensor: StoredTensor) -> StoredTensor:
        num_outputs, num_inputs = tensor.shape

        def make(device: torch.device) -> GroupedMatrix:
            if not self._fill:
                return _without_values(source.on_meta, device)
            return rounded(tensor.read().to(device), self._kind)

        source = GroupedSource(
            self._kind, (num_outputs, num_inputs), MIN_GROUP, 1, torch.float32, False, make
        )
        return replace(
            tensor,
            dtype=torch.float32,
            read=lambda: make(torch.device("cpu")).expand(),
            stored=None,
            grouped=source,
        )


def rounded(weight: Tensor, kind: ValueKind) -> GroupedMatrix:
    """A matrix [N, K] in groups of 32 inputs, each with the scale of its largest value."""
    groups = weight.float().unflatten(1, (-1, MIN_GROUP))
    scales = groups.abs().amax(-1).clamp_min(1e-10) / _LARGEST[kind]
    values = (groups / scales[..., None]).flatten(1)
    if kind is ValueKind.FP8:
        stored = values.to(torch.float8_e4m3fn)
    elif kind is ValueKind.INT8:
        stored = values.round().to(torch.int8)
    else:
        stored = (values.round() + 8).to(torch.uint8)
    return GroupedMatrix.pack(kind, stored, scales, group_size=MIN_GROUP)


def _without_values(like: GroupedMatrix, device: torch.device) -> GroupedMatrix:
    def empty(held: Tensor) -> Tensor:
        return torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=device)

    return replace(like, values=empty(like.values), scales=empty(like.scales))
