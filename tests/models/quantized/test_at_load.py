"""Plain weights rounded to few bits as they are loaded for a GPU; by the CPU, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import engines
from bench.lib.random_models import TRIPLES
from rsd_engine import Engine
from rsd_engine.models import loader
from rsd_engine.models.checkpoints import grouped_at_load
from rsd_engine.models.checkpoints.grouped_at_load import KINDS, GroupedAtLoad
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.loader import load_language_model
from rsd_engine.models.weight_form import WeightForm
from rsd_kernels.aot.memoryless import DEVICE
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind
from rsd_kernels.grouped.rounding import scale_dtype
from rsd_kernels.launch import available
from tests.models.checkpoints import make_model, save
from tests.models.driver import Driver

CPU = torch.device("cpu")
TOKENS = [1, 2, 3, 50, 60, 7]
SIZES = {"hidden_size": 128, "intermediate_size": 96}


def plain(folder: Path, **sizes: int) -> Path:
    return save(make_model("qwen2-untied", **{**SIZES, **sizes}), folder / "plain")


@pytest.mark.parametrize("word", KINDS)
def test_layers_are_rounded(word: str, tmp_path: Path) -> None:
    """In groups of 128 inputs where there are so many, and of 32 in four bits."""
    stored = open_checkpoint(plain(tmp_path)).tensors()
    found = GroupedAtLoad(open_checkpoint(tmp_path / "plain"), word).tensors()
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.read(), stored[name].read())
        assert (tensor.grouped is not None) == name.endswith("proj.weight")
        if tensor.grouped:
            size = 128 if word != "int4" and tensor.shape[1] == 128 else 32
            assert tensor.grouped.group_size == size
            made = tensor.grouped.make(CPU)
            assert made.nbytes == tensor.grouped.on_meta.nbytes
            wanted = tensor.read().float()
            assert (made.expand() - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("name", ["qwen3", "phi4-mini-short"])
def test_a_model_of_rounded_layers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where tensors of the file are merged, and where outputs move for the rotation."""

    def as_on_a_gpu(checkpoint: Any, config: Any, dtype: Any, device: torch.device) -> WeightForm:
        return WeightForm.in_groups(torch.float32, checkpoint.tensors())

    sizes = {"hidden_size": 64, "intermediate_size": 96}
    heads = {"num_attention_heads": 8} if name.startswith("phi4") else {}
    folder = save(make_model(name, **sizes, **heads), tmp_path)
    wanted = Driver(load_language_model(folder, max_rows=8)).run((0, TOKENS))
    monkeypatch.setattr(loader, "weight_form", as_on_a_gpu)
    few = load_language_model(GroupedAtLoad(open_checkpoint(folder), "int8"), max_rows=8)
    assert "int8-g32" in few.decoder.weights.held_in
    assert (Driver(few).run((0, TOKENS)) - wanted).norm() < 0.06 * wanted.norm()


def test_what_cannot_be_rounded(tmp_path: Path) -> None:
    narrow = plain(tmp_path, hidden_size=48, intermediate_size=80)
    with pytest.raises(ValueError, match="quantization='int4' rounds groups of 32, and no matrix"):
        GroupedAtLoad(open_checkpoint(narrow), "int4")
    model = make_model("qwen2-untied", **SIZES)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = torch.nan
    broken = GroupedAtLoad(open_checkpoint(save(model, tmp_path / "broken")), "int8")
    source = broken.tensors()["model.layers.0.mlp.up_proj.weight"].grouped
    assert source is not None
    with pytest.raises(ValueError, match=r"up_proj.weight in \S+ was not quantised: .*not finite"):
        source.make(CPU)


@pytest.mark.skipif(not available(), reason="Triton is not installed")
def test_an_engine_on_a_gpu_keeps_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the launches of its program, on tensors without memory or values to round."""

    def empty(weight: Tensor, kind: ValueKind, group_size: int) -> GroupedMatrix:
        dtypes = {ValueKind.INT4: torch.uint8, ValueKind.FP8: torch.float8_e4m3fn}
        values = torch.empty(weight.shape, dtype=dtypes[kind], device=weight.device)
        groups = (weight.shape[0], weight.shape[1] // group_size)
        scales = torch.empty(groups, dtype=scale_dtype(kind), device=weight.device)
        return GroupedMatrix.pack(kind, values, scales, group_size=group_size)

    monkeypatch.setattr(grouped_at_load, "rounded", empty)
    triple = TRIPLES["tiny"].checkpoints(CPU, None, 256)
    found = engines.launches(
        lambda: Engine(
            *triple, step_delimiters=None, max_num_seqs=2, max_model_len=128, device=DEVICE,
            quantization={"draft": "fp8", "target": "int4"},
        )
    )  # fmt: skip
    kinds = {form.kind for launch in found if (form := launch.args.get("FORMAT")) is not None}
    assert kinds == {"fp8", "int4"}
