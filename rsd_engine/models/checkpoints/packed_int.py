"""GPTQ and AWQ: integers of a few bits, packed into int32, with a scale and a zero for each group.

Both store a matrix with its inputs as rows, W = scale * (q - zero), and one scale and zero for a
group of inputs and each output. They differ in what is packed along which dimension and in what
order (Frantar et al., 2022, in the layout of AutoGPTQ; Lin et al., 2023, in that of AutoAWQ).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.packed_matrix import PARTS, PackedMatrix, Packing

_AWQ_BITS = 4
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # four-bit field of an int32 that holds output n of eight
_SECOND = "gptq_v2"


def check_gptq(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a variant of GPTQ that is not known."""
    _check(settings, "bits", 4, 8)
    _check(settings, "checkpoint_format", "gptq", _SECOND, None)
    _group_size(settings)


def check_awq(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a variant of AWQ that is not known."""
    _check(settings, "bits", _AWQ_BITS)
    _check(settings, "version", "gemm", "GEMM", None)
    _check(settings, "zero_point", True, None)
    _group_size(settings)


def expand_gptq(
    stored: dict[str, StoredTensor], settings: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """GPTQ: values packed along the inputs, zeros along the outputs, lowest bits first."""
    bits, fields = settings["bits"], 32 // settings["bits"]
    # The first version of the format, which is that of files without a name of it, stores zero - 1.
    offset = 0 if settings.get("checkpoint_format") == _SECOND else 1

    def shape_of(qweight: tuple[int, ...]) -> tuple[int, int]:
        return qweight[0] * fields, qweight[1]

    def unpack(qweight: Tensor, qzeros: Tensor) -> tuple[Tensor, Tensor]:
        zeros = _unpacked(qzeros, bits, dim=1).add_(offset) & (2**bits - 1)
        return _unpacked(qweight, bits, dim=0), zeros

    check = partial(_check_convention, settings)
    return _expand(stored, settings, Packing("GPTQ", bits, shape_of, unpack, check))


def expand_awq(
    stored: dict[str, StoredTensor], settings: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """AWQ for its GEMM kernel: all packed along the outputs, interleaved."""
    fields = 32 // _AWQ_BITS

    def shape_of(qweight: tuple[int, ...]) -> tuple[int, int]:
        return qweight[0], qweight[1] * fields

    def in_order(packed: Tensor) -> Tensor:
        eights = _unpacked(packed, _AWQ_BITS, dim=1).view(len(packed), -1, fields)
        return eights[..., _AWQ_ORDER].flatten(1)

    def unpack(qweight: Tensor, qzeros: Tensor) -> tuple[Tensor, Tensor]:
        return in_order(qweight), in_order(qzeros)

    return _expand(stored, settings, Packing("AWQ", _AWQ_BITS, shape_of, unpack))


def _check_convention(settings: Mapping[str, Any], zeros: Tensor) -> None:
    """Raises ValueError if the zeros are those of symmetric weights in the other version of GPTQ.

    Symmetric weights, AutoGPTQ's default, have the middle value as their zero everywhere. Read by
    the wrong version it is one more or one less everywhere, and nothing tells which of the two is
    meant: zeros that happen to be alike, or another version than the config's.
    """
    if settings.get("sym") is False:
        return
    middle, version = 2 ** (settings["bits"] - 1), settings.get("checkpoint_format")
    wrong = middle - 1 if version == _SECOND else middle + 1
    if bool((zeros == wrong).all()):
        raise ValueError(
            f"holds zeros of {wrong} alone, as checkpoint_format={version!r} reads them, where "
            f"symmetric weights have {middle}: it may be of the other version; set "
            "checkpoint_format to gptq or gptq_v2 in quantization_config, and sym to false if "
            "the weights are not symmetric"
        )


def _expand(
    stored: dict[str, StoredTensor], settings: Mapping[str, Any], packing: Packing
) -> dict[str, StoredTensor]:
    """Plain tensors in place of the `PARTS` of each linear layer."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        stem, _, kind = name.rpartition(".")
        packed = f"{stem}.qweight" in stored
        if packed and kind == "qweight":
            parts = {p: stored[f"{stem}.{p}"] for p in PARTS if f"{stem}.{p}" in stored}
            found[f"{stem}.weight"] = PackedMatrix(
                stem, parts, packing, _group_size(settings)
            ).stored()
        elif not (packed and kind in PARTS):
            found[name] = tensor
    return found


def _unpacked(packed: Tensor, bits: int, dim: int) -> Tensor:
    """The unsigned fields of each int32, lowest first, along `dim`, as uint8."""
    mask = 2**bits - 1
    fields = [(packed >> shift & mask).to(torch.uint8) for shift in range(0, 32, bits)]
    return torch.stack(fields, dim + 1).flatten(dim, dim + 1)


def _check(settings: Mapping[str, Any], name: str, *allowed: object) -> None:
    value = settings.get(name)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        shown = ", ".join(repr(a) for a in allowed if a is not None)
        raise ValueError(
            f"quantization_config: {name}={value!r} is not supported by "
            f"{settings['quant_method']}; {shown}"
        )


def _group_size(settings: Mapping[str, Any]) -> int:
    """Inputs that share a scale; -1 stands for all."""
    size = settings.get("group_size", 128)
    if type(size) is not int or not (size == -1 or 0 < size <= 2**20):
        raise ValueError(
            f"quantization_config: group_size={size!r} must be -1 or from 1 to {2**20}"
        )
    return size
