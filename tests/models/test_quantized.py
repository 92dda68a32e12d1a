"""GPTQ, AWQ and FP8 load as the plain weights that they stand for.

The files are packed here value by value, as AutoGPTQ and AutoAWQ lay them out, and the plain
weights are computed from the numbers before packing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.loader import load_language_model
from tests.models.checkpoints import edit_config, make_model, save
from tests.models.driver import Driver

TOKENS = [1, 2, 3, 50, 60, 7]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output whose value lies in bits 4 i to 4 i + 3

Packed = tuple[Tensor, dict[str, Tensor]]


def logits(folder: Path) -> Tensor:
    return Driver(load_language_model(folder, max_rows=8)).run((0, TOKENS))


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
    folder: Path, make: Callable[[tuple[int, int]], Packed], settings: dict[str, Any]
) -> tuple[Path, Path]:
    """A folder with packed linear layers, and one with the plain weights they stand for."""
    model = make_model("qwen2-untied", hidden_size=32, intermediate_size=64)
    quantised, dense = save(model, folder / "quantised"), save(model, folder / "dense")
    weights = load_file(quantised / "model.safetensors")
    packed, expanded = {}, dict(weights)
    for name, tensor in weights.items():
        stem = name.removesuffix(".weight")
        if not name.endswith("proj.weight"):
            packed[name] = tensor
            continue
        expanded[name], parts = make(tuple(tensor.shape))  # type: ignore[arg-type]
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


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, -1])
@pytest.mark.parametrize("order", ["plain", "desc_act", "without g_idx", "zero g_idx"])
def test_gptq(tmp_path: Path, bits: int, group_size: int, order: str) -> None:
    settings = gptq_settings(bits=bits, group_size=group_size, desc_act=order == "desc_act")
    made, dense = quantise(tmp_path, lambda shape: gptq(shape, bits, group_size, order), settings)
    torch.testing.assert_close(logits(made), logits(dense), atol=0, rtol=0)


def test_gptq_of_the_second_version(tmp_path: Path) -> None:
    settings = gptq_settings(checkpoint_format="gptq_v2")
    made, dense = quantise(tmp_path, lambda shape: gptq(shape, 4, 16, "plain", "gptq_v2"), settings)
    torch.testing.assert_close(logits(made), logits(dense), atol=0, rtol=0)


def test_awq(tmp_path: Path) -> None:
    made, dense = quantise(tmp_path, lambda shape: awq(shape, 16), AWQ_SETTINGS)
    torch.testing.assert_close(logits(made), logits(dense), atol=0, rtol=0)


def test_a_known_word_of_each_packing(tmp_path: Path) -> None:
    """0x76543210 holds 0 to 7 in order for GPTQ, and 0 4 1 5 2 6 3 7 for AWQ."""
    from rsd_engine.models.checkpoints.base import StoredTensor
    from rsd_engine.models.checkpoints.quantized import expanded

    def stored(value: Tensor) -> StoredTensor:
        return StoredTensor(tuple(value.shape), value.dtype, "f", value.nbytes, lambda: value)

    word = torch.tensor([[0x76543210]], dtype=torch.int32)
    eights = torch.tensor([[0x77777777]], dtype=torch.int32)
    parts = {"x.qweight": word, "x.qzeros": eights[:, :0], "x.scales": torch.ones(1, 8).half()}
    awq_parts = parts | {"x.qzeros": torch.zeros_like(word)}
    settings = AWQ_SETTINGS | {"group_size": 1}
    found = expanded({n: stored(t) for n, t in awq_parts.items()}, settings)
    assert found["x.weight"].read().flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]

    parts = {
        "x.qweight": word.expand(1, 8).contiguous(),
        "x.qzeros": eights,  # stands for a zero of 8
        "x.scales": torch.ones(1, 8).half(),
    }
    found = expanded({n: stored(t) for n, t in parts.items()}, gptq_settings(group_size=8))
    assert found["x.weight"].read()[0].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1]


@pytest.mark.parametrize("block", [(16, 16), (24, 20), (128, 128)])
def test_fp8_with_blocks(tmp_path: Path, block: tuple[int, int]) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": list(block), "fmt": "e4m3"}
    made, dense = quantise(tmp_path, lambda shape: fp8(shape, block, ""), settings)
    torch.testing.assert_close(logits(made), logits(dense), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale_shape", ["scalar", "one", "rows"])
def test_fp8_with_a_scale_for_a_tensor(tmp_path: Path, scale_shape: str) -> None:
    settings = {"quant_method": "fp8", "activation_scheme": "static"}
    made, dense = quantise(tmp_path, lambda shape: fp8(shape, None, scale_shape), settings)
    torch.testing.assert_close(logits(made), logits(dense), atol=1e-5, rtol=1e-5)


def compressed(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"} | changes
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize(("strategy", "scale_shape"), [("tensor", "one"), ("channel", "rows")])
def test_fp8_in_compressed_tensors(tmp_path: Path, strategy: str, scale_shape: str) -> None:
    settings = compressed(strategy=strategy)
    made, dense = quantise(tmp_path, lambda shape: fp8(shape, None, scale_shape), settings)
    torch.testing.assert_close(logits(made), logits(dense), atol=1e-5, rtol=1e-5)


def test_the_log_says_what_memory_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rsd_engine")
    made, _ = quantise(tmp_path, lambda shape: awq(shape, 16), AWQ_SETTINGS)
    load_language_model(made, max_rows=1)
    assert "expanding 21 tensors stored as AWQ: " in caplog.text
    assert "MiB on disk, " in caplog.text and "MiB in memory" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported; one of gptq, awq, f"),
        ({"quant_method": "mxfp4"}, "'mxfp4' is not supported"),
        ({"bits": 4}, "quant_method=None is not supported"),
        ({"quant_method": ["gptq"]}, "is not supported"),
        (["gptq"], "quantization_config must be a JSON object"),
        (gptq_settings(bits=3), "bits=3 is not supported by gptq; 4, 8"),
        (gptq_settings(bits=4.0), "bits=4.0 is not supported"),
        (gptq_settings(checkpoint_format="marlin"), "checkpoint_format='marlin' is not supported"),
        (gptq_settings(group_size=0), "group_size=0 must be -1 or from 1"),
        (AWQ_SETTINGS | {"version": "gemv"}, "version='gemv' is not supported by awq; 'gemm'"),
        (AWQ_SETTINGS | {"zero_point": False}, "zero_point=False is not supported by awq"),
        (compressed() | {"format": "pack-quantized"}, "format='pack-quantized' is supported only"),
        (compressed(num_bits=4), "supported only as float-quantized, 8 bits"),
        (compressed(strategy="block"), "strategy tensor or channel"),
        (compressed() | {"config_groups": [1]}, "supported only as float-quantized"),
        (compressed() | {"transform_config": {"a": 1}}, "without transform_config"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "must be null or two numbers"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, settings: object, said: str) -> None:
    folder = save(make_model("qwen2-untied"), tmp_path)
    edit_config(folder, quantization_config=settings)
    with pytest.raises(ValueError, match=said) as caught:
        load_language_model(folder, max_rows=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("scales", None, "q_proj.qweight has no scales beside it"),
        ("scales", torch.ones(3, 32), r"q_proj.scales .* of shape \[3, 32\].* shape \[2, 32\]"),
        ("scales", torch.ones(2, 32, dtype=torch.int32), "is int32 of shape"),
        ("qweight", torch.zeros(4, 32), "q_proj.qweight in model.safetensors is float32"),
        ("qweight", torch.zeros(4, dtype=torch.int32), r"qweight has shape \[4\]; it is no matrix"),
        ("g_idx", torch.full((32,), 2, dtype=torch.int32), "g_idx names groups outside 0 to 1"),
        ("g_idx", torch.full((32,), -1, dtype=torch.int32), "g_idx names groups outside 0 to 1"),
    ],
)
def test_damaged_parts_are_named(
    tmp_path: Path, part: str, value: Tensor | None, said: str
) -> None:
    made, _ = quantise(tmp_path, lambda shape: gptq(shape, 4, 16, "plain"), gptq_settings())
    weights = load_file(made / "model.safetensors")
    name = f"model.layers.1.self_attn.q_proj.{part}"
    weights.pop(name)
    if value is not None:
        weights[name] = value
    save_file(weights, made / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        load_language_model(made, max_rows=1)


@pytest.mark.parametrize("scale", [None, torch.ones(3), torch.ones(1, dtype=torch.int64)])
def test_fp8_needs_its_scale(tmp_path: Path, scale: Tensor | None) -> None:
    settings = {"quant_method": "fp8"}
    made, _ = quantise(tmp_path, lambda shape: fp8(shape, None, "one"), settings)
    weights = load_file(made / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight_scale"]
    if scale is not None:
        weights["model.layers.1.self_attn.q_proj.weight_scale"] = scale
    save_file(weights, made / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor model\.layers\.1\.self_attn\.q_proj\.weight in"):
        load_language_model(made, max_rows=1)


def test_quantised_weights_without_settings(tmp_path: Path) -> None:
    made, _ = quantise(tmp_path, lambda shape: awq(shape, 16), AWQ_SETTINGS)
    edit_config(made, drop=("quantization_config",))
    with pytest.raises(ValueError, match=r"but config\.json has no quantization_config"):
        load_language_model(made, max_rows=1)
