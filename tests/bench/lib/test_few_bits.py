"""Checkpoints whose layers are in few bits on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.gpu.executors import first_difference, open_engine, open_family, solver
from bench.lib.few_bits import FewBits
from rsd_engine.demo import checkpoint_dir
from rsd_engine.models import loader
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.weight_form import WeightForm

CPU = torch.device("cpu")


def test_what_is_read_and_what_is_empty() -> None:
    plain = open_checkpoint(checkpoint_dir("draft"))
    few, empty = (FewBits(plain, "int4", fill=fill).tensors() for fill in (True, False))
    for name, tensor in few.items():
        assert (tensor.grouped is None) == ("layers" not in name or "norm" in name)
        if tensor.grouped:
            made, shapes = tensor.grouped.make(CPU), empty[name].grouped
            assert torch.equal(tensor.read(), made.expand()) and shapes is not None
            like = shapes.make(CPU)
            assert (like.values.shape, like.scales.stride()) == (
                made.values.shape, made.scales.stride(),
            )  # fmt: skip


def test_an_engine_decides_as_one_of_the_expanded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft in fp8, target in int4 and PRM in int8, by the plain ops."""
    family, solve = open_family(few_bits=True), solver(1, 24)
    with open_engine(CPU, "eager", family) as engine:
        expected = solve(engine)

    def as_on_a_gpu(checkpoint: Any, config: Any, dtype: Any, device: torch.device) -> WeightForm:
        return WeightForm.in_groups(torch.float32, checkpoint.tensors())

    monkeypatch.setattr(loader, "weight_form", as_on_a_gpu)
    with open_engine(CPU, "eager", family) as engine:
        held = [" ".join(formats) for formats in engine.memory.formats.values()]
        assert [any(name in kept for kept in held) for name in ("fp8", "int4-g32", "int8")]
        assert first_difference(expected, solve(engine), rewards=False) is None
    [steps] = [output.outputs[0].steps for output in expected["greedy"]]
    assert any(step.rejected is not None for step in steps)
