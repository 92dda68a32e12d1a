"""GPTQ, AWQ and FP8 load as the plain weights that they stand for.

`packed_files` packs them value by value.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.loader import load_language_model
from tests.models.checkpoints import edit_config, make_model, save
from tests.models.driver import Driver
from tests.models.quantized.packed_files import (
    AWQ_SETTINGS,
    Packed,
    awq,
    compressed,
    fp8,
    gptq,
    gptq_settings,
    pack,
    quantise,
)

TOKENS = [1, 2, 3, 50, 60, 7]


def logits(folder: Path) -> Tensor:
    return Driver(load_language_model(folder, max_rows=8)).run((0, TOKENS))


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
        ("scales", None, "q_proj.qweight in model.safetensors has no scales beside it"),
        ("scales", torch.ones(3, 32), r"q_proj.scales .* of shape \[3, 32\].* shape \[2, 32\]"),
        ("scales", torch.ones(2, 32, dtype=torch.int32), "is int32 of shape"),
        ("qweight", torch.zeros(4, 32), "q_proj.qweight in model.safetensors is float32"),
        (
            "qweight",
            torch.zeros(4, dtype=torch.int32),
            r"qweight in .* has shape \[4\]; it is no matrix",
        ),
        ("g_idx", torch.full((32,), 2, dtype=torch.int32), "g_idx .* names groups outside 0 to 1"),
        ("g_idx", torch.full((32,), -1, dtype=torch.int32), "g_idx .* names groups outside 0 to 1"),
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


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [None, "gptq", "gptq_v2"])
@pytest.mark.parametrize("sym", [None, True, False])
def test_zeros_of_the_other_version_are_named(
    tmp_path: Path, bits: int, version: str | None, sym: bool | None
) -> None:
    """Zeros of symmetric weights, read by the wrong version, are one more or less everywhere."""
    read_as = version or "gptq"
    written_as = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[read_as]
    settings = gptq_settings(bits=bits)
    settings |= {} if version is None else {"checkpoint_format": version}
    settings |= {} if sym is None else {"sym": sym}

    def make(shape: tuple[int, int]) -> Packed:
        weight, parts = gptq(shape, bits, 16, "plain", read_as)
        field = 2 ** (bits - 1) - (written_as == "gptq")
        zeros = np.full((parts["qzeros"].shape[0], shape[0]), field)
        return weight, parts | {
            "qzeros": torch.from_numpy(pack(zeros, bits, tuple(range(32 // bits))))
        }

    made, _ = quantise(tmp_path, make, settings)
    if sym is False:
        load_language_model(made, max_rows=1)
        return
    stored = open_checkpoint(made).tensors()
    name = "model.layers.0.mlp.down_proj"
    said = (
        rf"GPTQ tensor {name}\.qzeros in model\.safetensors holds zeros of {2 ** (bits - 1) + 1} "
        if read_as == "gptq"
        else rf"{name}\.qzeros in model\.safetensors holds zeros of {2 ** (bits - 1) - 1} alone"
    )
    with pytest.raises(ValueError, match=said) as caught:
        stored[f"{name}.weight"].read()
    assert "set checkpoint_format to gptq or gptq_v2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["GPTQ", "AWQ"])
def test_a_group_size_must_divide(tmp_path: Path, method: str) -> None:
    if method == "GPTQ":
        settings = gptq_settings(group_size=24)
        made, _ = quantise(tmp_path, lambda shape: gptq(shape, 4, 24, "plain"), settings)
    else:
        settings = AWQ_SETTINGS | {"group_size": 24}
        made, _ = quantise(tmp_path, lambda shape: awq(shape, 16), settings)
    said = rf"{method} tensor model\.\S+\.qweight in \S+ has (32|64) inputs; group_size=24 of"
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
