"""What is fetched ahead of its use, and by whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weights import DecoderWeights
from rsd_engine.roofline.presets import PRESETS
from rsd_kernels import ahead
from rsd_kernels.ahead import AHEAD_BYTES, ATTENTION_AHEAD_BYTES, ahead_args, next_weight_args
from rsd_kernels.linear.weight import LinearWeight


def test_the_beginning_of_the_next_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    first = LinearWeight(torch.empty(4, 8, dtype=torch.bfloat16))
    small, large = (torch.empty(n, 1024, dtype=torch.bfloat16) for n in (3, 8192))
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    assert next_weight_args(first) == {"ahead": first.matrix, "ahead_lines": 0}
    assert next_weight_args(first.before(small)) == {"ahead": small, "ahead_lines": 48}
    args = next_weight_args(first.before(large))
    assert args["ahead"] is large and args["ahead_lines"] * 128 == AHEAD_BYTES
    assert ahead_args(large, 256, small) == {"ahead": large, "ahead_lines": 2}
    assert next_weight_args(first.before(large.t()))["ahead_lines"] == 0
    monkeypatch.setattr(ahead, "interpreting", lambda: True)
    assert next_weight_args(first.before(large))["ahead_lines"] == 0


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"])
def test_what_attention_has_fetched_is_not_fetched_again(name: str) -> None:
    """The product of o begins with the first row behind it."""
    config = ModelConfig.from_dict({**PRESETS[name], "num_hidden_layers": 2})
    weights = DecoderWeights.allocate(config, torch.bfloat16, torch.device("meta")).in_order()
    for layer in weights.layers:
        assert isinstance(layer.o, LinearWeight) and isinstance(layer.gate_up, LinearWeight)
        rest, whole = layer.o.next_matrix, layer.gate_up.matrix
        assert isinstance(rest, Tensor) and rest._base is whole
        skipped = whole.nbytes - rest.nbytes
        row = whole.shape[1] * whole.itemsize
        assert ATTENTION_AHEAD_BYTES <= skipped < ATTENTION_AHEAD_BYTES + row
        assert rest.storage_offset() * rest.itemsize == skipped
