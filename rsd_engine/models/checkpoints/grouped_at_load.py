"""Plain weights that are rounded to few bits when they are loaded, for products on a GPU.

The matrices of layers are, in groups of inputs that share a scale (`rsd_kernels.grouped`);
embedding, LM head, norms, biases and the heads of reward models stay as they are, and so does a
matrix whose inputs are no whole number of groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from rsd_engine.models.checkpoints.at_load import check_plain, in_layer
from rsd_engine.models.checkpoints.base import (
    Checkpoint,
    GroupedSource,
    RewrittenCheckpoint,
    StoredTensor,
)
from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind
from rsd_kernels.grouped.rounding import rounded, scale_dtype

KINDS = {kind.value: kind for kind in (ValueKind.INT8, ValueKind.INT4, ValueKind.FP8)}
# Inputs that share a scale. Four bits need small groups; more bits lose little with large ones,
# unless inputs are no whole number of these.
_GROUPS = {ValueKind.INT4: (MIN_GROUP,)}
_USUAL_GROUPS = (128, MIN_GROUP)


class GroupedAtLoad(RewrittenCheckpoint):
    """A checkpoint of plain weights, with the matrices of its layers in few bits.

    Each is rounded on the device when it is loaded. `read` of a tensor still gives what the
    checkpoint has.

    Args:
        checkpoint: of plain weights.
        name: in `KINDS`, what they are rounded to.

    Raises:
        ValueError: its weights are quantised already, or cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        super().__init__(checkpoint)
        self._kind = KINDS[name]
        stored = check_plain(checkpoint, name)
        self._stored = {name: self._grouped(name, tensor) for name, tensor in stored.items()}
        if not any(tensor.grouped for tensor in self._stored.values()):
            raise ValueError(
                f"model {self.source!r}: quantization={name!r} rounds groups of {MIN_GROUP}, and "
                "no matrix of a layer has rows of whole groups"
            )

    def tensors(self) -> Mapping[str, StoredTensor]:
        return self._stored

    def _grouped(self, name: str, tensor: StoredTensor) -> StoredTensor:
        if not tensor.is_matrix or not in_layer(name):
            return tensor
        num_outputs, num_inputs = tensor.shape
        sizes = _GROUPS.get(self._kind, _USUAL_GROUPS)
        size = next((size for size in sizes if num_inputs % size == 0), None)
        if size is None:
            return tensor

        def make(device: torch.device) -> GroupedMatrix:
            try:
                return rounded(tensor.read().to(device), self._kind, size)
            except ValueError as error:
                raise ValueError(
                    f"tensor {name} in {tensor.file} was not quantised: {error}"
                ) from error

        return replace(
            tensor,
            grouped=GroupedSource(
                self._kind, (num_outputs, num_inputs), size, 1, scale_dtype(self._kind), False, make
            ),
        )
