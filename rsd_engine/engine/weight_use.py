"""What the weights of a model are held in, by format, and what a pass reads of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.weight_form import name_of
from rsd_kernels.formats.weight import StoredMatrix
from rsd_kernels.grouped.matrix import GroupedMatrix

Model = LanguageModel | RewardModel


def held_by_format(model: Model, counted: set[int]) -> dict[str, int]:
    """Bytes of the weights by format; storages in `counted` are left out, the others added to it.

    Matrices have the name of their format, such as "Q4_K", and vectors that of their dtype.
    """
    return _by_format([model.decoder.weights, _last(model)], counted)


def read_by_format(model: Model) -> dict[str, int]:
    """Bytes that a pass reads by format: all but an embedding of which it looks up single rows."""
    weights = model.decoder.weights
    return _by_format([weights.layers, weights.final_norm, _last(model)], set())


def count_bytes(value: Any, counted: set[int]) -> int:
    """Bytes of the tensors in `value` whose storage is not yet in `counted`; adds it there."""
    return sum(_by_format(value, counted).values())


def _last(model: Model) -> Any:
    return model.lm_head if isinstance(model, LanguageModel) else model.head


def _by_format(value: Any, counted: set[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, tensor in _tensors(value):
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            found[name] = found.get(name, 0) + storage.nbytes()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a tensor, a collection or a dataclass, at any depth, with their formats."""
    if isinstance(value, Tensor):
        yield name_of(value), value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = _tensors([getattr(value, field.name) for field in fields(value)])
        whole = name_of(value) if isinstance(value, StoredMatrix | GroupedMatrix) else None
        yield from ((whole or name, tensor) for name, tensor in parts)
