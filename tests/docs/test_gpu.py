"""What to expect of a GPU is what the model says."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

from rsd_engine.roofline.formats import find_format
from rsd_engine.roofline.gpus import find_gpu
from rsd_engine.roofline.launch_times import READ_SHARE, Load
from rsd_engine.roofline.sources import find_config
from rsd_engine.roofline.tick_times import tick_time
from rsd_engine.roofline.ticks import decode_tick
from rsd_kernels.launch import available
from tests.docs.conftest import Shell
from tests.docs.documents import document

GPU = document("docs/gpu.md")
pytestmark = pytest.mark.skipif(not available(), reason="Triton is not installed")


def test_the_launches_of_a_tick(shell: Shell) -> None:
    command, _, block = GPU.text.partition("$ rsd plan --launches ")[2].partition("\n")
    shown = block.partition("\n```")[0]
    assert shell.rsd("plan", "--launches", *shlex.split(command)).strip() == shown.strip()


def _forward(model: str, gpu: str, rows: int) -> list[str]:
    """Time and share of the bandwidth, by format."""
    device, tick = find_gpu(gpu), decode_tick(find_config(model), torch.bfloat16, rows)
    device = device.measured(bandwidth=READ_SHARE * device.bandwidth)
    formats = (None, *map(find_format, ("fp8", "int8", "int4")))
    times = [tick_time(tick, Load(rows, 1024), device, weights=weights) for weights in formats]
    return [f"{1e6 * t.forward_seconds:.0f} ({1e2 * t.share(device):.0f} %)" for t in times]


def test_the_times_of_a_token_with_quantised_weights() -> None:
    rows = GPU.table_after("### With quantised weights")
    assert [(gpu, model) for gpu, model, *_ in rows] == [
        (gpu, f"Qwen2.5-{size}")
        for gpu in ("H100", "H200")
        for size in ("0.5B", "1.5B", "7B", "72B")
    ]
    for gpu, model, *cells in rows:
        assert cells == _forward(model.lower(), gpu.lower(), 1)
    rows = GPU.table_after("Up to 16 sequences read the same weights")
    assert [number for number, *_ in rows] == ["1", "4", "16"]
    for number, *cells in rows:
        assert cells == _forward("qwen2.5-7b", "h200", int(number))


def test_the_times_of_a_token(shell: Shell) -> None:
    rows = GPU.table_after("## What to expect")
    assert len(rows) == 6
    for gpu, model, *cells in rows:
        args = ("plan", "--launches", f"--draft={model.lower()}", f"--gpu={gpu.lower()}", "--json")
        found = json.loads(shell.rsd(*args))
        plain, early = found["draft"]["ticks"][:2]
        assert (plain["sequences"], plain["early"], early["early"]) == (1, False, True)
        least = plain["forward"]["num_bytes"] / found["gpu"]["bandwidth"]
        forwards = [
            f"{1e6 * tick['forward']['seconds']:.0f} ({1e2 * tick['forward']['share']:.0f} %)"
            for tick in (plain, early)
        ]
        control = f"{1e6 * plain['control']['seconds']:.0f}"
        assert cells == [f"{1e6 * least:.0f}", *forwards, control]
