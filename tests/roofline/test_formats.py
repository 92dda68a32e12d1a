"""Formats of quantised weights against sums done by hand."""

from __future__ import annotations

import gguf
import pytest
import torch

from rsd_engine.roofline.formats import find_format
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.roofline.sources import find_config

EMBEDDING = 152064 * 3584  # of Qwen2.5-7B, which has a head of its own
BODY = 7_615_616_512 - 2 * EMBEDDING


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp8", 8 + 32 / 16384),
        ("int8", 8 + 24 / 128),
        ("int4", 4 + 20 / 128),
        ("INT4-g64 ", 4 + 20 / 64),
        ("int4-g32", 4 + 20 / 32),
        ("int8-g256", 8 + 24 / 256),
        ("int4-channel", 4),
    ],
)
def test_bits_with_scales_and_zeros(name: str, bits: float) -> None:
    """Embedding and head stay in 16 bits."""
    weights = find_format(name)
    assert weights.bits == bits
    shape = ModelShape.of(find_config("qwen2.5-7b"), weights=weights)
    assert shape.weight_bytes == round(BODY * bits / 8 + 2 * EMBEDDING * 2)
    assert shape.read_bytes == round(BODY * bits / 8 + EMBEDDING * 2)


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"])
def test_blocks_of_gguf(name: str) -> None:
    """As the gguf package has them; embedding and head have the format too."""
    weights, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    found = find_format(name)
    assert found.bits == 8 * num_bytes / weights
    shape = ModelShape.of(find_config("qwen2.5-7b"), torch.float32, weights=found)
    assert shape.weight_bytes == round(7_615_616_512 * num_bytes / weights)
    assert shape.kv_bytes_per_token == 28 * 4 * 128 * 2 * 4  # K and V are not quantised


@pytest.mark.parametrize("name", ["int3", "int4-g0", "int4-g", "int8-channel-g32", "4"])
def test_a_format_that_is_not_known(name: str) -> None:
    said = f"quantization must be one of fp8, .*q4_0, got '{name}'"
    with pytest.raises(ValueError, match=said):
        find_format(name)
