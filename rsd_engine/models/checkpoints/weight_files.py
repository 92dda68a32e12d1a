"""Streams the tensors of safetensors and pytorch_model.bin files, single or in shards."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_SAFETENSORS = "model.safetensors"
_BIN = "pytorch_model.bin"


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint in `folder`, one at a time, on the CPU.

    Safetensors are preferred to .bin files; an index names the shards.

    Raises:
        ValueError: there are no weights, a shard is missing, or a file is damaged.
    """
    for name, read in ((_SAFETENSORS, _read_safetensors), (_BIN, _read_bin)):
        shards = _shards(folder, name)
        for path in shards:
            yield from read(path)
        if shards:
            return
    raise ValueError(f"{folder} holds no weights: neither {_SAFETENSORS} nor {_BIN}, nor an index")


def matrix_dtypes(folder: Path) -> set[torch.dtype]:
    """The dtypes in which the checkpoint in `folder` stores its matrices; little of it is read.

    Raises:
        ValueError: as in `read_tensors`.
    """
    shards = _shards(folder, _SAFETENSORS)
    if not shards:
        return {t.dtype for _, t in read_tensors(folder) if _is_matrix(t.shape)}
    return {dtype for path in shards for dtype in _safetensors_matrices(path)}


def _safetensors_matrices(path: Path) -> Iterator[torch.dtype]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                matrix = file.get_slice(name)
                if _is_matrix(matrix.get_shape()):
                    yield matrix[:0].dtype
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _is_matrix(shape: Sequence[int]) -> bool:
    """A single row, such as the weight of a value head, is not counted as a matrix."""
    return len(shape) == 2 and min(shape) > 1


def _shards(folder: Path, name: str) -> list[Path]:
    """The files that hold the weights: the one called `name`, or those its index lists."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weight files: {error}") from error
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
    return [folder / file for file in files]


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_bin(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors only: a pickle that holds anything else is refused, and nothing in it is run."""
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before zip files cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged or not a file of plain tensors: {error}") from error
    state = state.get("state_dict", state)
    yield from ((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))
