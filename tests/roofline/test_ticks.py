"""What a tick launches, found by running the program on tensors without memory."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from rsd_engine.models.config import ModelConfig
from rsd_engine.roofline.formats import find_format
from rsd_engine.roofline.gpus import find_gpu
from rsd_engine.roofline.launch_times import LaunchCost, Load
from rsd_engine.roofline.passes import pass_cost
from rsd_engine.roofline.presets import PRESETS
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.roofline.tick_times import tick_time
from rsd_engine.roofline.ticks import decode_tick
from rsd_kernels.launch import available
from rsd_kernels.state.enums import Role

pytestmark = pytest.mark.skipif(not available(), reason="Triton is not installed")
CONTEXT = 1024
QWEN3 = "Qwen3ForCausalLM"
BF16 = torch.bfloat16


def config_of(name: str) -> ModelConfig:
    """A preset, or a small model of a family: norms of heads or of what is added are launches."""
    if name in PRESETS:
        return ModelConfig.from_dict(PRESETS[name])
    raw = {**PRESETS["qwen2.5-1.5b"], "architectures": [name], "head_dim": 128}
    return ModelConfig.from_dict({**raw, "num_hidden_layers": 3})


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen2.5-7b", QWEN3, "Olmo2ForCausalLM"])
def test_a_tick_reads_what_a_pass_must(name: str, rows: int) -> None:
    """The sum over its launches is that of the roofline: no weight is missed or read twice."""
    config = config_of(name)
    tick, load = decode_tick(config, BF16, rows), Load(rows, CONTEXT)
    found = sum(LaunchCost.of(launch, load).num_bytes for launch in tick.forward)
    expected = pass_cost(ModelShape.of(config, BF16), seqs=rows, rows=1, context=CONTEXT).num_bytes
    assert found == pytest.approx(expected, rel=1e-3)
    weights = Counter(
        tuple(launch.args["weight"].shape)
        for launch in tick.forward
        if "weight" in launch.args and launch.args["weight"].dim() == 2
    )
    hidden, width = config.hidden_size, config.intermediate_size
    assert weights[(2 * width, hidden)] == weights[(hidden, width)] == config.num_layers
    assert weights[(config.vocab_size, hidden)] == 1


def test_ops_around_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them launches something. Values, of which there are none, are not checked."""
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    ticks = {
        role: decode_tick(config_of(QWEN3), BF16, 1, role) for role in (Role.DRAFT, Role.TARGET)
    }
    for tick in ticks.values():
        assert next(iter(tick.control)) == "schedule" and "write" in tick.control
        assert all(tick.control.values())
        assert tick.num_arms == 1


def test_what_is_expected_of_known_models() -> None:
    """Bounds of the model itself: nothing beats the roofline, and large weights come close."""
    device = find_gpu("h200")
    shares = {}
    for name in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"):
        tick = decode_tick(config_of(name), BF16)
        plain, early = (
            tick_time(tick, Load(1, CONTEXT), device, early=early) for early in (False, True)
        )
        assert early.forward_seconds < plain.forward_seconds < plain.seconds
        shares[name] = (plain.share(device), early.share(device))
    small, middle, large = shares.values()
    assert small < middle < large and math.isclose(large[0], 0.86, abs_tol=0.06)
    assert max(large) < 0.95


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_a_tick_reads_quantised_layers_as_a_pass_must(name: str) -> None:
    config, weights = config_of("qwen2.5-1.5b"), find_format(name)
    shape = ModelShape.of(config, BF16, weights=weights)
    expected = pass_cost(shape, seqs=4, rows=1, context=CONTEXT).num_bytes
    tick, device = decode_tick(config, BF16, 4), find_gpu("h200")
    found = tick_time(tick, Load(4, CONTEXT), device, weights=weights)
    assert found.num_bytes == pytest.approx(expected, rel=1e-3)
    assert found.share(device) < 0.95


def test_rows_without_a_body() -> None:
    with pytest.raises(ValueError, match=r"num_rows is 17; it must be in \[1, 16\]"):
        decode_tick(config_of(QWEN3), BF16, 17)
