"""What the weights of a model are held in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.names import GATE_UP, QKV
from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind

_OF_LAYER = re.compile(r"(.*\blayers\.\d+\.)(.+)\.weight")
_TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class WeightForm:
    """What a model computes in, and what its matrices are held in.

    Attributes:
        dtype: of every computation, of vectors, and of K and V.
        matrix_dtype: of the matrices; None: they stay in the bytes of the file.
        bytes_per_parameter: of the matrices of layers, on average.
        table_bytes_per_parameter: of embedding and LM head, on average.
        name: of what they are held in, for people: "bfloat16", "Q4_K and Q6_K", "int4-g128 and
            bfloat16".
        grouped: whether matrices of layers that are stored in few bits stay in them, see
            `GroupedMatrix`; `matrix_dtype` is that of the others.
    """

    dtype: torch.dtype
    matrix_dtype: torch.dtype | None
    bytes_per_parameter: float
    table_bytes_per_parameter: float
    name: str
    grouped: bool = False

    @classmethod
    def plain(cls, dtype: torch.dtype, matrix_dtype: torch.dtype | None = None) -> WeightForm:
        """Matrices are of `dtype` too, unless `matrix_dtype` is given."""
        held = matrix_dtype or dtype
        return cls(dtype, held, held.itemsize, held.itemsize, _short(held))

    @classmethod
    def as_stored(cls, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """Matrices stay as the file has them."""
        held = {
            name: _Held(tensor.packing or _short(tensor.dtype), tensor.nbytes, tensor.num_elements)
            for name, tensor in stored.items()
            if tensor.is_matrix
        }
        return cls(dtype, None, *_bytes_per_parameter(held), _listed(held))

    @classmethod
    def in_groups(cls, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> WeightForm:
        """Matrices of layers stay in the few bits that they are stored in; others are plain."""
        kept, held = grouped_names(stored), {}
        if not kept:
            return cls.plain(dtype)
        for name, tensor in stored.items():
            if name in kept and tensor.grouped is not None:
                label = _grouped_name(tensor.grouped.kind, tensor.grouped.group_size)
                held[name] = _Held(label, tensor.grouped.nbytes, tensor.num_elements)
            elif tensor.is_matrix:
                nbytes = tensor.num_elements * dtype.itemsize
                held[name] = _Held(_short(dtype), nbytes, tensor.num_elements)
        return cls(dtype, dtype, *_bytes_per_parameter(held), _listed(held), grouped=True)


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


def held_in(tables: Iterable[Tensor | StoredMatrix | GroupedMatrix]) -> str:
    """What matrices are held in, that of most bytes first: "Q4_K and Q6_K"."""
    return _listed({i: _Held(_name_of(table), table.nbytes) for i, table in enumerate(tables)})


def _name_of(table: Tensor | StoredMatrix | GroupedMatrix) -> str:
    if isinstance(table, Tensor):
        return _short(table.dtype)
    if isinstance(table, StoredMatrix):
        return table.form.name if table.form.dtype is None else _short(table.form.dtype)
    whole = table.group_size == table.num_inputs
    return _grouped_name(table.kind, None if whole else table.group_size)


def _grouped_name(kind: ValueKind, group_size: int | None) -> str:
    """As `rsd plan` calls it; the scales of FP8, few in any layout, have no name."""
    if kind is ValueKind.FP8:
        return kind.value
    return f"{kind.value}-channel" if group_size is None else f"{kind.value}-g{group_size}"


class _Held(NamedTuple):
    """A matrix in memory."""

    name: str  # of its format
    nbytes: int
    num_elements: int = 0


def _listed(held: Mapping[Any, _Held]) -> str:
    """Every format once, that of most bytes first."""
    totals: dict[str, int] = {}
    for matrix in held.values():
        totals[matrix.name] = totals.get(matrix.name, 0) + matrix.nbytes
    names = sorted(totals, key=lambda name: -totals[name])
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _bytes_per_parameter(held: Mapping[str, _Held]) -> tuple[float, float]:
    """Of the matrices of layers, and of embedding and LM head."""
    tables = [matrix for name, matrix in held.items() if name.endswith(_TABLES)]
    layers = [matrix for name, matrix in held.items() if not name.endswith(_TABLES)]
    everything = list(held.values())
    return _average(layers or everything), _average(tables or everything)


def _average(matrices: Sequence[_Held]) -> float:
    return sum(m.nbytes for m in matrices) / sum(m.num_elements for m in matrices)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
