"""What the weights of a model are held in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.names import GATE_UP, QKV
from rsd_kernels.formats.formats import PLAIN
from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind

_OF_LAYER = re.compile(r"(.*\blayers\.\d+\.)(.+)\.weight")
_USUAL_GROUP = 128  # which a name leaves out
_TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class WeightForm:
    """What a model computes in, and what its matrices are held in.

    Attributes:
        dtype: of every computation, of vectors, and of K and V.
        matrix_dtype: of the matrices; None: they stay in the bytes of the file.
        bytes_per_parameter: of the matrices of layers, on average.
        name: of what they are held in, for people, as "Q4_K and Q6_K" or "int4-g64 and bfloat16".
        table_bytes_per_parameter: of embedding and LM head, on average; None: as of layers.
        grouped: whether matrices of layers that are stored in few bits stay in them, see
            `GroupedMatrix`; `matrix_dtype` is that of the others.
    """

    dtype: torch.dtype
    matrix_dtype: torch.dtype | None
    bytes_per_parameter: float
    name: str
    table_bytes_per_parameter: float | None = None
    grouped: bool = False

    @classmethod
    def plain(cls, dtype: torch.dtype, matrix_dtype: torch.dtype | None = None) -> WeightForm:
        """Matrices are of `dtype` too, unless `matrix_dtype` is given."""
        held = matrix_dtype or dtype
        return cls(dtype, held, held.itemsize, _short(held))

    @classmethod
    def as_stored(cls, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """Matrices stay as the file has them."""
        return cls(dtype, None, 0.0, "")._measured(stored)

    @classmethod
    def in_groups(cls, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """Matrices of layers stay in the few bits that they are stored in; others are plain."""
        plain = cls.plain(dtype)
        return replace(plain, grouped=True)._measured(stored) if grouped_names(stored) else plain

    def held(self, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, int]]:
        """Format and bytes in memory of every matrix of a checkpoint."""
        matrices = {name: tensor for name, tensor in stored.items() if tensor.is_matrix}
        if self.matrix_dtype is None:
            return {name: stays_as(matrix) for name, matrix in matrices.items()}
        kept = grouped_names(stored) if self.grouped else set()
        found = {}
        for name, matrix in matrices.items():
            found[name] = _plain(matrix, self.matrix_dtype)
            if name in kept and matrix.grouped:
                few = matrix.grouped.on_meta
                found[name] = name_of(few), few.nbytes
        return found

    def _measured(self, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """The same form, with sizes and name of these tensors."""
        held = self.held(stored)
        tables = {name for name in held if name.endswith(_TABLES)}

        def average(names: Collection[str]) -> float:
            elements = sum(stored[name].num_elements for name in names)
            return sum(held[name][1] for name in names) / elements

        return replace(
            self,
            bytes_per_parameter=average(held.keys() - tables or held),
            table_bytes_per_parameter=average(tables or held),
            name=listed_by_size(held.values()),
        )


def stays_as(matrix: StoredTensor) -> tuple[str, int]:
    """Format and bytes of a matrix that stays as it is stored, if products can be made of that.

    Blocks of other formats, such as Q3_K, are expanded to float32.
    """
    if matrix.stored:
        return str(matrix.packing), matrix.nbytes
    return _plain(matrix, matrix.dtype if matrix.dtype in PLAIN else torch.float32)


def grouped_names(stored: Mapping[str, StoredTensor]) -> set[str]:
    """Names of the matrices of layers that can stay in few bits.

    Those that are merged into one weight stay so together or not at all.
    """
    found = set()
    for name in stored:
        if match := _OF_LAYER.fullmatch(name):
            prefix, part = match.groups()
            merged = next((parts for parts in (QKV, GATE_UP) if part in parts), (part,))
            parts = [stored.get(f"{prefix}{other}.weight") for other in merged]
            if all(tensor is not None and tensor.grouped for tensor in parts):
                found.add(name)
    return found


def name_of(table: Tensor | StoredMatrix | GroupedMatrix) -> str:
    """What a matrix is held in."""
    if isinstance(table, Tensor):
        return _short(table.dtype)
    if isinstance(table, StoredMatrix):
        return table.form.name if table.form.dtype is None else _short(table.form.dtype)
    # As `rsd plan` calls it. The scales of FP8, few in any layout, have no name.
    if table.kind is ValueKind.FP8 or table.group_size == _USUAL_GROUP:
        return table.kind.value
    whole = table.group_size == table.num_inputs
    return f"{table.kind.value}-channel" if whole else f"{table.kind.value}-g{table.group_size}"


def listed_by_size(sizes: Iterable[tuple[str, int]]) -> str:
    """Every name once, that of most bytes first: "Q4_K and Q6_K"."""
    totals: dict[str, int] = {}
    for name, size in sizes:
        totals[name] = totals.get(name, 0) + size
    names = sorted(totals, key=lambda name: -totals[name])
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _plain(matrix: StoredTensor, dtype: torch.dtype) -> tuple[str, int]:
    return _short(dtype), matrix.num_elements * dtype.itemsize


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
