"""Checkpoints whose layers are rounded when they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.gpu.executors import first_difference, open_engine, open_family, solver
from bench.lib.few_bits import FewBits, rounded
from rsd_engine.demo import checkpoint_dir
from rsd_engine.models import loader
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.weight_form import WeightForm
from rsd_kernels.grouped.matrix import ValueKind

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "step"), [(ValueKind.INT4, 1 / 14), (ValueKind.INT8, 1 / 254), (ValueKind.FP8, 1 / 16)]
)
def test_every_value_is_rounded_to_the_nearest(kind: ValueKind, step: float) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    found = rounded(weight, kind).expand()
    largest = weight.view(24, 3, 32).abs().amax(-1, keepdim=True).expand(24, 3, 32).reshape(24, 96)
    error = (found - weight).abs()
    assert (error <= largest * step * 1.001).all() and error.max() > 0
    assert (found[3] == 0).all()


def test_only_layers_are_rounded() -> None:
    plain = open_checkpoint(checkpoint_dir("draft"))
    few = FewBits(plain, ValueKind.INT4)
    stored = few.tensors()
    assert stored.keys() == plain.tensors().keys() and few.config() == plain.config()
    for name, tensor in plain.tensors().items():
        grouped = stored[name].grouped
        assert (grouped is not None) == name.endswith("proj.weight")
        if grouped is None:
            assert torch.equal(stored[name].read(), tensor.read())
        else:
            assert torch.equal(stored[name].read(), rounded(tensor.read(), ValueKind.INT4).expand())
            empty = FewBits(plain, ValueKind.INT4, fill=False).tensors()[name].grouped
            assert empty is not None
            one, other = empty.make(CPU), grouped.make(CPU)
            assert (one.values.shape, one.scales.stride()) == (
                other.values.shape, other.scales.stride(),
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
        assert [any(name in kept for kept in held) for name in ("fp8", "int4-g32", "int8-g32")]
        assert first_difference(expected, solve(engine), rewards=False) is None
    [steps] = [output.outputs[0].steps for output in expected["greedy"]]
    assert any(step.rejected is not None for step in steps)
