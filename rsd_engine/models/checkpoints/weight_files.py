"""Opens safetensors and pytorch_model.bin files, single or in shards; tensors are read later."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor

_LOG = logging.getLogger(__name__)

_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_LONGEST_NAME = 200  # characters
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def stored_tensors(folder: Path, files: Sequence[str] = _MODEL_FILES) -> dict[str, StoredTensor]:
    """Every tensor of the weights in `folder`.

    Args:
        folder: where the weights are.
        files: names that they may have; the first found counts, alone or as an index of shards.

    Raises:
        ValueError: there are no weights, an index is wrong, or a file is missing or damaged.
    """
    for name in files:
        if (folder / name).is_file():
            return _open_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _open_shards(index)
    raise ValueError(f"{folder} holds no weights: neither {' nor '.join(files)}, nor an index")


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    """The copy of each tensor that the index names; a shard may hold others, which do not count."""
    listed = _weight_map(index)
    found, others = {}, []
    for file in sorted(set(listed.values())):
        for name, tensor in _open_file(index.parent / file).items():
            if listed.get(name) == file:
                found[name] = tensor
            else:
                others.append(f"{name} in {file}")
    absent = sorted(listed.keys() - found.keys())
    if absent:
        raise ValueError(
            f"{index} says that {absent[0]} is in {listed[absent[0]]}, which does not hold it; "
            "download the shards and the index again"
        )
    if others:
        _LOG.warning("%s does not name %s; left out", index, listing(sorted(others)))
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of its shard, a file of the index's folder."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not listed or not all(is_name(name) and is_name(listed[name]) for name in listed):
            raise ValueError("weight_map must give the name of a file for every tensor")
    except Exception as error:
        raise ValueError(f"{index} is not an index of weight files: {reason(error)}") from error
    files = sorted(set(listed.values()))
    for file in files:
        if _leaves_folder(file):
            raise ValueError(f"{index} names {file!r}; only files of its own folder are read")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise ValueError(f"{index} names files that are not there: {listing(missing)}")
    return listed


def _leaves_folder(file: str) -> bool:
    kinds = (PurePosixPath(file), PureWindowsPath(file))
    return any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds)


def _open_file(path: Path) -> dict[str, StoredTensor]:
    found = _open_bin(path) if path.suffix == ".bin" else _open_safetensors(path)
    odd = [name for name in found if not is_name(name)]
    if odd:
        raise ValueError(f"{path} names a tensor {ascii(odd[0])[:100]}; it is damaged")
    return found


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="pt", device="cpu")
        found = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            header = file.get_slice(name)
            dtype, shape = header.get_dtype(), tuple(header.get_shape())
            if dtype not in _DTYPES:
                raise ValueError(f"tensor {name} is of type {dtype}; one of {', '.join(_DTYPES)}")
            nbytes = _DTYPES[dtype].itemsize * prod(shape)
            read = partial(file.get_tensor, name)
            found[name] = StoredTensor(shape, _DTYPES[dtype], path.name, nbytes, read)
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {reason(error)}") from error
    return found


def _open_bin(path: Path) -> dict[str, StoredTensor]:
    """Tensors only: a pickle that holds anything else is refused, and nothing in it is run."""
    try:
        state = _unpickle(path)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a file of plain tensors, so it was not read: "
            f"{reason(error)}; save the weights as safetensors"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; it must be a dict of tensors")
    return {name: _plain(path, name, value) for name, value in state.items()}


def _unpickle(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles, beside the error
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before zip files cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)


def _plain(path: Path, name: object, value: object) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(
            f"{path} holds a {type(value).__name__} under {repr(name)[:100]}; only tensors are "
            "allowed"
        )
    tensor = value.detach()  # of a Parameter too
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{path}: tensor {name} is not a plain one; save it as a dense tensor")
    return StoredTensor(tuple(tensor.shape), tensor.dtype, path.name, tensor.nbytes, lambda: tensor)


def is_name(value: object) -> bool:
    """True for text that names a tensor or a file, and that a message can show."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def listing(names: Sequence[str], shown: int = 8) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def reason(error: Exception, longest: int = 200) -> str:
    """What another library's error says, on one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= longest else said[: longest - 3] + "..."
