"""What every checkpoint offers, however its files are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind

_VALUES = {
    ValueKind.INT4: torch.uint8, ValueKind.INT8: torch.int8, ValueKind.FP8: torch.float8_e4m3fn,
}  # fmt: skip


@dataclass(frozen=True)
class GroupedSource:
    """A matrix in few bits for products on a GPU, known by its header and not made yet.

    Attributes:
        kind: of its values.
        shape: outputs and inputs.
        group_size: inputs that share a scale.
        scale_rows: outputs that share a scale.
        scale_dtype: of the scales.
        may_have_zeros: whether values can have zeros of their own.
        make: unpacks and packs again on the device that it is given; raises ValueError, which
            names the tensor, for what no such matrix holds.
    """

    kind: ValueKind
    shape: tuple[int, int]
    group_size: int
    scale_rows: int
    scale_dtype: torch.dtype
    may_have_zeros: bool
    make: Callable[[torch.device], GroupedMatrix]

    @staticmethod
    def takes(num_inputs: int, group_size: int) -> bool:
        """True if products on a GPU read groups of this size."""
        divides = group_size % MIN_GROUP == 0 and num_inputs % group_size == 0
        return group_size == num_inputs or divides

    @property
    def on_meta(self) -> GroupedMatrix:
        """Without memory: the matrix with all zeros that it may have, in the order of x."""
        return _packed_on_meta(
            self.kind, self.shape, self.group_size, self.scale_rows, self.scale_dtype,
            self.may_have_zeros,
        )  # fmt: skip


@cache  # a model has hundreds, of a handful of shapes
def _packed_on_meta(
    kind: ValueKind,
    shape: tuple[int, int],
    group_size: int,
    scale_rows: int,
    scale_dtype: torch.dtype,
    may_have_zeros: bool,
) -> GroupedMatrix:
    groups = shape[1] // group_size
    values = torch.empty(shape, dtype=_VALUES[kind], device="meta")
    scales = values.new_empty(-(-shape[0] // scale_rows), groups, dtype=scale_dtype)
    zeros = values.new_empty(shape[0], groups, dtype=torch.int8) if may_have_zeros else None
    return GroupedMatrix.pack(
        kind, values, scales, zeros, group_size=group_size, scale_rows=scale_rows
    )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint that is known by its header and not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # as `read` returns it
    file: str  # name of the file that holds it, for messages
    nbytes: int  # in the file
    read: Callable[[], Tensor]  # on the CPU; often a view of the mapped file, never written to
    packing: str | None = None  # how it is quantised in the file, such as "GPTQ"; None: plain
    # the bytes of the file, where products can be made of them; often a view of the mapped file
    stored: Callable[[], StoredMatrix] | None = None
    grouped: GroupedSource | None = None  # where products on a GPU can be made of its few bits

    @property
    def is_matrix(self) -> bool:
        """A single row, as of a value head, is none."""
        return len(self.shape) == 2 and min(self.shape) > 1

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    def as_matrix(self) -> StoredMatrix:
        """The bytes of the file if products can be made of them, else the tensor as read."""
        return self.stored() if self.stored else StoredMatrix.of(self.read())


class Checkpoint(ABC):
    """The config, weights and tokenizer of one model, each read when it is asked for."""

    source: str  # what the user called it, for messages
    overrides: Mapping[str, Any] = MappingProxyType({})  # of the user, for single keys of `config`

    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The config with the keys of a config.json."""

    @abstractmethod
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor under its name in transformers; only headers are read.

        Raises:
            ValueError: there are no weights, or a file is missing, damaged or not supported.
        """

    def weight_files(self) -> tuple[Path, ...]:
        """The files that the tensors are read from; none of a model that is in memory."""
        return ()

    @abstractmethod
    def tokenizer(self) -> Any:
        """The transformers tokenizer (a PreTrainedTokenizerBase)."""

    @abstractmethod
    def generation_config(self) -> dict[str, Any] | None:
        """End-of-text ids and sampling defaults, None if the checkpoint has none."""


class RewrittenCheckpoint(Checkpoint):
    """A checkpoint that has all of another but its tensors.

    Args:
        plain: the other.
    """

    def __init__(self, plain: Checkpoint) -> None:
        self.source = plain.source
        self.overrides = plain.overrides
        self._plain = plain

    def config(self) -> Mapping[str, Any]:
        return self._plain.config()

    def weight_files(self) -> tuple[Path, ...]:
        return self._plain.weight_files()

    def tokenizer(self) -> Any:
        return self._plain.tokenizer()

    def generation_config(self) -> dict[str, Any] | None:
        return self._plain.generation_config()
