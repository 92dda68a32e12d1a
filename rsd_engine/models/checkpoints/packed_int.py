"""GPTQ and AWQ: integers of a few bits, packed into int32, with a scale and a zero for each group.

Both store a matrix with its inputs as rows, W = scale * (q - zero), and one scale and zero for a
group of inputs and each output. They differ in what is packed along which dimension and in what
order (Frantar et al., 2022, in the layout of AutoGPTQ; Lin et al., 2023, in that of AutoAWQ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_FLOATS, _INTEGERS = (torch.float32, torch.float16, torch.bfloat16), (torch.int32, torch.int64)
_AWQ_BITS = 4
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # four-bit field of an int32 that holds output n of eight

Parts = dict[str, StoredTensor]
Dequantise = Callable[[dict[str, Tensor]], Tensor]


def check_gptq(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a variant of GPTQ that is not known."""
    _check(settings, "bits", 4, 8)
    _check(settings, "checkpoint_format", "gptq", "gptq_v2", None)
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
    # The first version of the format stores zero - 1.
    offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def shape_of(qweight: tuple[int, ...]) -> tuple[int, int]:
        return qweight[0] * fields, qweight[1]

    def dequantise(group_size: int, parts: dict[str, Tensor]) -> Tensor:
        values = _unpacked(parts["qweight"], bits, dim=0)
        zeros = _unpacked(parts["qzeros"], bits, dim=1).add_(offset) & (2**bits - 1)
        group = torch.arange(len(values)) // group_size
        if "g_idx" in parts and parts["g_idx"].any():  # all zeros stand for the plain order
            group = parts["g_idx"].long()
        return _scaled(values, zeros, parts["scales"], group)

    return _expand(stored, settings, "GPTQ", bits, shape_of, dequantise)


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

    def dequantise(group_size: int, parts: dict[str, Tensor]) -> Tensor:
        values, zeros = in_order(parts["qweight"]), in_order(parts["qzeros"])
        return _scaled(values, zeros, parts["scales"], torch.arange(len(values)) // group_size)

    return _expand(stored, settings, "AWQ", _AWQ_BITS, shape_of, dequantise)


def _expand(
    stored: dict[str, StoredTensor],
    settings: Mapping[str, Any],
    packing: str,
    bits: int,
    shape_of: Callable[[tuple[int, ...]], tuple[int, int]],
    dequantise: Callable[[int, dict[str, Tensor]], Tensor],
) -> dict[str, StoredTensor]:
    """Plain tensors in place of each linear layer's `_PARTS`.

    Args:
        stored: the checkpoint's tensors.
        settings: the quantization_config.
        packing: name of the format.
        bits: of a value and of a zero.
        shape_of: inputs and outputs, from the shape of qweight.
        dequantise: from group size and parts to [outputs, inputs] in fp32.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        stem, _, kind = name.rpartition(".")
        packed = f"{stem}.qweight" in stored
        if packed and kind == "qweight":
            parts = {p: stored[f"{stem}.{p}"] for p in _PARTS if f"{stem}.{p}" in stored}
            if len(tensor.shape) != 2 or min(tensor.shape) < 1:
                raise ValueError(f"tensor {name} has shape {list(tensor.shape)}; it is no matrix")
            inputs, outputs = shape_of(tensor.shape)
            group_size = _group_size(settings, inputs)
            groups = -(-inputs // group_size)
            _check_parts(
                stem, parts, {
                    "qweight": tensor.shape,
                    "qzeros": (groups, outputs * bits // 32),
                    "scales": (groups, outputs),
                    "g_idx": (inputs,),
                }
            )  # fmt: skip
            read = partial(_read, stem, parts, groups, partial(dequantise, group_size))
            nbytes = sum(part.nbytes for part in parts.values())
            found[f"{stem}.weight"] = StoredTensor(
                (outputs, inputs), torch.float32, tensor.file, nbytes, read, packing
            )
        elif not (packed and kind in _PARTS):
            found[name] = tensor
    return found


def _check_parts(stem: str, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for part in ("qzeros", "scales"):
        if part not in parts:
            raise ValueError(f"quantised tensor {stem}.qweight has no {part} beside it")
    for part, tensor in parts.items():
        kinds = _FLOATS if part == "scales" else _INTEGERS
        if (
            tensor.shape != shapes[part]
            or tensor.dtype not in kinds
            or min(tensor.shape, default=0) < 1
        ):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"tensor {stem}.{part} in {tensor.file} is {kind} of shape {list(tensor.shape)}; "
                f"with the bits and group_size of quantization_config it must have shape "
                f"{list(shapes[part])}, int32 except for scales"
            )


def _read(stem: str, parts: Parts, groups: int, dequantise: Dequantise) -> Tensor:
    tensors = {name: tensor.read() for name, tensor in parts.items()}
    order = tensors.get("g_idx")
    if order is not None and not bool(((order >= 0) & (order < groups)).all()):
        raise ValueError(
            f"tensor {stem}.g_idx names groups outside 0 to {groups - 1}; the checkpoint is damaged"
        )
    return dequantise(tensors)


def _unpacked(packed: Tensor, bits: int, dim: int) -> Tensor:
    """The unsigned fields of each int32, lowest first, along `dim`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    shifts = shifts.view(-1, *[1] * (packed.dim() - dim - 1))
    fields = (packed.int().unsqueeze(dim + 1) >> shifts) & (2**bits - 1)
    return fields.flatten(dim, dim + 1)


def _scaled(values: Tensor, zeros: Tensor, scales: Tensor, group: Tensor) -> Tensor:
    """[inputs, outputs] integers to [outputs, inputs] weights; `group` is each input's."""
    return ((values - zeros[group]) * scales.float()[group]).t().contiguous()


def _check(settings: Mapping[str, Any], name: str, *allowed: object) -> None:
    value = settings.get(name)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        shown = ", ".join(repr(a) for a in allowed if a is not None)
        raise ValueError(
            f"quantization_config: {name}={value!r} is not supported by "
            f"{settings['quant_method']}; {shown}"
        )


def _group_size(settings: Mapping[str, Any], inputs: int = 0) -> int:
    """Inputs that share a scale; -1 stands for all."""
    size = settings.get("group_size", 128)
    if type(size) is not int or not (size == -1 or 0 < size <= 2**20):
        raise ValueError(
            f"quantization_config: group_size={size!r} must be -1 or from 1 to {2**20}"
        )
    return inputs if size == -1 else size
