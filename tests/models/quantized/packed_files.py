"""Checkpoints of GPTQ, AWQ and FP8, packed value by value as AutoGPTQ and AutoAWQ lay them out.

The plain weights that they stand for are computed from the numbers before packing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.checkpoints import edit_config, make_model, save

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output whose value lies in bits 4 i to 4 i + 3

Packed = tuple[Tensor, dict[str, Tensor]]


def pack(values: np.ndarray[Any, Any], bits: int, order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Columns, `32 / bits` at a time, into one int32: `order[i]` is the column in field i."""
    fields = 32 // bits
    packed = np.zeros((values.shape[0], values.shape[1] // fields), np.uint32)
    for column in range(packed.shape[1]):
        for i in range(fields):
            value = values[:, column * fields + order[i]].astype(np.uint32)
            packed[:, column] |= value << np.uint32(bits * i)
    return packed.view(np.int32)


def draw(outputs: int, inputs: int, bits: int, groups: int, least_zero: int) -> tuple[Any, ...]:
    random = np.random.default_rng(outputs * 1000 + inputs)
    values = random.integers(0, 2**bits, (inputs, outputs))
    zeros = random.integers(least_zero, 2**bits, (groups, outputs))
    scales = random.uniform(0.005, 0.03, (groups, outputs)).astype(np.float16)
    if bits == 8:
        scales /= 16
    return values, zeros, scales


def plain(values: Any, zeros: Any, scales: Any, group: Any) -> Tensor:
    weight = np.empty(values.shape[::-1], np.float32)
    for i in range(values.shape[0]):
        g = group[i]
        weight[:, i] = scales[g].astype(np.float32) * (values[i] - zeros[g])
    return torch.from_numpy(weight)


def gptq(
    shape: tuple[int, int], bits: int, group_size: int, order: str, version: str = "gptq"
) -> Packed:
    outputs, inputs = shape
    size = inputs if group_size == -1 else group_size
    groups = -(-inputs // size)
    # The first version stores zero - 1, so that zero itself cannot be told from 2**bits.
    values, zeros, scales = draw(outputs, inputs, bits, groups, 1 if version == "gptq" else 0)
    group = np.arange(inputs) // size
    if order == "desc_act":
        group = np.random.default_rng(5).permutation(group)
    in_order = tuple(range(32 // bits))
    stored = zeros - 1 if version == "gptq" else zeros
    parts = {
        "qweight": torch.from_numpy(pack(values.T, bits, in_order).T.copy()),
        "qzeros": torch.from_numpy(pack(stored, bits, in_order)),
        "scales": torch.from_numpy(scales),
    }
    if order != "without g_idx":
        given = np.zeros_like(group) if order == "zero g_idx" else group
        parts["g_idx"] = torch.from_numpy(given.astype(np.int32))
    return plain(values, zeros, scales, group), parts


def awq(shape: tuple[int, int], group_size: int) -> Packed:
    outputs, inputs = shape
    values, zeros, scales = draw(outputs, inputs, 4, inputs // group_size, 0)
    parts = {
        "qweight": torch.from_numpy(pack(values, 4, AWQ_ORDER)),
        "qzeros": torch.from_numpy(pack(zeros, 4, AWQ_ORDER)),
        "scales": torch.from_numpy(scales),
    }
    return plain(values, zeros, scales, np.arange(inputs) // group_size), parts


def fp8(shape: tuple[int, int], block: tuple[int, int] | None, scale_shape: str) -> Packed:
    outputs, inputs = shape
    generator = torch.Generator().manual_seed(outputs * 1000 + inputs)
    value = (torch.randn(shape, generator=generator) * 100).to(torch.float8_e4m3fn)
    weight = value.float()
    if block is None:
        count = outputs if scale_shape == "rows" else 1
        scale = torch.rand(count, 1, generator=generator) / 500
        weight = weight * scale
        stored = scale.view({"scalar": (), "one": (1,), "rows": (count, 1)}[scale_shape])
        return weight, {"weight": value, "weight_scale": stored, "input_scale": torch.ones(1)}
    rows, columns = -(-outputs // block[0]), -(-inputs // block[1])
    scale = torch.rand(rows, columns, generator=generator) / 500
    for i in range(rows):
        for j in range(columns):
            weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]] *= scale[
                i, j
            ]
    return weight, {"weight": value, "weight_scale_inv": scale}


def quantise(
    folder: Path,
    make: Callable[[tuple[int, int]], Packed],
    settings: dict[str, Any],
    left: tuple[str, ...] = (),
    name: str = "qwen2-untied",
    **sizes: int,
) -> tuple[Path, Path]:
    """A folder with packed linear layers, and one with the plain weights they stand for.

    Layers whose names contain one of `left` stay plain in both.
    """
    model = make_model(name, **{"hidden_size": 32, "intermediate_size": 64, **sizes})
    quantised, dense = save(model, folder / "quantised"), save(model, folder / "dense")
    weights = load_file(quantised / "model.safetensors")
    packed, expanded = {}, dict(weights)
    for tensor_name, tensor in weights.items():
        stem = tensor_name.removesuffix(".weight")
        if not tensor_name.endswith("proj.weight") or any(part in tensor_name for part in left):
            packed[tensor_name] = tensor
            continue
        expanded[tensor_name], parts = make(tuple(tensor.shape))  # type: ignore[arg-type]
        packed |= {f"{stem}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(packed, quantised / "model.safetensors")
    save_file(expanded, dense / "model.safetensors")
    edit_config(quantised, quantization_config=settings)
    return quantised, dense


def gptq_settings(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False} | changes


AWQ_SETTINGS = {
    "quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm",
}  # fmt: skip


def compressed(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"} | changes
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
