"""GPTQ, AWQ and FP8 on a GPU: layers stay in their bits, and stand for what a CPU expands.

The weights are made on the CPU here, where nothing of it depends on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsd_engine.engine.memory_estimate import ModelMemory
from rsd_engine.models import loader
from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.checkpoints.open import open_checkpoint
from rsd_engine.models.checkpoints.quantized import expanded
from rsd_engine.models.convert import as_computed
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.loader import load_language_model, read_language_config, weight_form
from rsd_engine.models.weight_form import WeightForm, name_of
from rsd_engine.models.weights import DecoderWeights
from rsd_engine.roofline.formats import find_format
from rsd_kernels.formats.weight import StoredMatrix, Weight
from rsd_kernels.grouped.matrix import GroupedMatrix, ValueKind
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.linear.weight import LinearWeight
from tests.models.checkpoints import make_model
from tests.models.driver import Driver
from tests.models.quantized.packed_files import (
    AWQ_SETTINGS,
    Packed,
    awq,
    compressed,
    fp8,
    gptq,
    gptq_settings,
    quantise,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOKENS = [1, 2, 3, 50, 60, 7]
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
PHI4: dict[str, Any] = {"num_attention_heads": 8}  # of the width that its factors are for
Q = "model.layers.1.self_attn.q_proj"

Make = Callable[[tuple[int, int]], Packed]
Case = tuple[Make, dict[str, Any], str]


def gptq_case(bits: int, group: int, order: str, version: str = "gptq") -> Case:
    settings = gptq_settings(bits=bits, group_size=group, checkpoint_format=version)
    name = f"int{bits}-channel" if group == -1 else f"int{bits}-g{group}"
    return lambda shape: gptq(shape, bits, group, order, version), settings, name


def fp8_case(block: tuple[int, int] | None, scale: str) -> Case:
    settings = {"quant_method": "fp8", "weight_block_size": block and list(block)}
    return lambda shape: fp8(shape, block, scale), settings, "fp8"


CASES: dict[str, Case] = {
    "gptq": gptq_case(4, 32, "plain"),
    "gptq of 8 bits": gptq_case(8, 32, "plain"),
    "act-order": gptq_case(4, 32, "desc_act"),
    "act-order of 8 bits": gptq_case(8, 32, "desc_act", "gptq_v2"),
    "gptq_v2": gptq_case(4, 32, "without g_idx", "gptq_v2"),
    "zero g_idx": gptq_case(4, 32, "zero g_idx"),
    "one group": gptq_case(4, -1, "plain"),
    "awq": (lambda shape: awq(shape, 32), AWQ_SETTINGS | {"group_size": 32}, "int4-g32"),
    "fp8 in blocks": fp8_case((32, 32), ""),
    "fp8 in blocks that outputs do not fill": fp8_case((48, 32), ""),
    "fp8 with a scale": fp8_case(None, "scalar"),
    "fp8 with a scale of each output": fp8_case(None, "rows"),
    "compressed-tensors": (lambda shape: fp8(shape, None, "rows"), compressed(), "fp8"),
}


@pytest.fixture
def in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader chooses as on a GPU."""

    def form(checkpoint: Any, config: Any, dtype: Any, device: torch.device) -> WeightForm:
        return WeightForm.in_groups(torch.float32, checkpoint.tensors())

    monkeypatch.setattr(loader, "weight_form", form)


def grouped_of(folder: Path) -> dict[str, tuple[StoredTensor, GroupedMatrix]]:
    """Every tensor that can stay in its bits, and the matrix that is made of it."""
    stored = open_checkpoint(folder).tensors()
    return {n: (t, t.grouped.make(CPU)) for n, t in stored.items() if t.grouped is not None}


def plain_weight(weight: Weight) -> LinearWeight:
    return weight if isinstance(weight, LinearWeight) else weight.to(torch.float32)


def logits_of_expanded(model: LanguageModel) -> Tensor:
    """Those of the model with every weight expanded."""
    weights = model.decoder.weights
    layers = [
        replace(
            layer, qkv=plain_weight(layer.qkv), o=plain_weight(layer.o),
            gate_up=plain_weight(layer.gate_up), down=plain_weight(layer.down),
        )
        for layer in weights.layers
    ]  # fmt: skip
    plain = DecoderWeights(weights.embedding, tuple(layers), weights.final_norm)
    decoder = Decoder(model.config, plain, max_rows=8)
    return Driver(LanguageModel(decoder, model.lm_head)).run((0, TOKENS))


@pytest.mark.parametrize("case", CASES)
def test_the_matrix_is_that_of_the_expansion(tmp_path: Path, case: str) -> None:
    make, settings, name = CASES[case]
    folder, dense = quantise(tmp_path, make, settings, **SIZES)
    found, wanted = grouped_of(folder), load_file(dense / "model.safetensors")
    assert found.keys() == {n for n in wanted if n.endswith("proj.weight")}
    for tensor_name, (stored, matrix) in found.items():
        assert torch.equal(matrix.expand(), stored.read())
        torch.testing.assert_close(matrix.expand(), wanted[tensor_name], rtol=1e-6, atol=1e-6)
        assert stored.grouped is not None
        order = 0 if matrix.order is None else matrix.order.nbytes
        assert stored.grouped.kind is matrix.kind
        assert stored.grouped.on_meta.nbytes == matrix.nbytes - order
    assert find_format(name).bits >= next(iter(found.values()))[1].kind.bits


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("case", CASES)
def test_a_model_whose_layers_stay_in_their_bits(tmp_path: Path, case: str) -> None:
    make, settings, name = CASES[case]
    folder, dense = quantise(tmp_path, make, settings, **SIZES)
    model = load_language_model(folder, max_rows=8)
    for layer in model.decoder.weights.layers:
        linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
        assert all(isinstance(weight, GroupedWeight) for weight in linears)
    assert set(model.decoder.weights.held_in.split(" and ")) >= {name, "float32"}
    wanted = Driver(load_language_model(dense, max_rows=8)).run((0, TOKENS))
    torch.testing.assert_close(logits_of_expanded(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("case", ["act-order", "gptq of 8 bits", "awq", "fp8 in blocks"])
def test_passes_over_weights_in_their_bits(tmp_path: Path, case: str) -> None:
    """The whole decoder, by the plain ops."""
    make, settings, _ = CASES[case]
    folder, dense = quantise(tmp_path, make, settings, **SIZES)
    few, plain = (Driver(load_language_model(path, max_rows=8)) for path in (folder, dense))
    for chunk in (TOKENS, [9, 4]):
        torch.testing.assert_close(few.run((0, chunk)), plain.run((0, chunk)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("name", ["phi3", "phi4-mini-short", "llama-bias", "qwen3"])
def test_parts_of_merged_tensors_and_moved_outputs(tmp_path: Path, name: str) -> None:
    """Phi-3 stores q, k and v as one; where half a head is rotated, their outputs move."""
    sizes = {"llama-bias": {"head_dim": 16}, "phi4-mini-short": PHI4}.get(name, {})
    make, settings, _ = CASES["act-order"]
    folder, dense = quantise(tmp_path, make, settings, name=name, **SIZES, **sizes)
    model = load_language_model(folder, max_rows=8)
    assert isinstance(model.decoder.weights.layers[2].qkv, GroupedWeight)
    wanted = Driver(load_language_model(dense, max_rows=8)).run((0, TOKENS))
    torch.testing.assert_close(logits_of_expanded(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["awq", "fp8 in blocks"])
def test_matrices_of_parts_of_a_merged_tensor(tmp_path: Path, case: str) -> None:
    make, settings, _ = CASES[case]
    folder, _ = quantise(tmp_path, make, settings, name="phi4-mini-short", **SIZES, **PHI4)
    checkpoint = open_checkpoint(folder)
    config = read_language_config(checkpoint)
    found = as_computed(checkpoint.tensors(), config, "m")
    names = [f"{Q}.weight", Q.replace("q_proj", "v_proj") + ".weight"]
    for stored in (found[name] for name in names):
        assert stored.grouped is not None
        assert torch.equal(stored.grouped.make(CPU).expand(), stored.read())


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("left", [("k_proj",), ("layers.1.",), ("o_proj", "up_proj")])
def test_layers_that_are_not_quantised(tmp_path: Path, left: tuple[str, ...]) -> None:
    """A merged weight with a plain part is plain; the others stay in their bits."""
    make, settings, _ = CASES["gptq"]
    folder, dense = quantise(tmp_path, make, settings, left, **SIZES)
    model = load_language_model(folder, max_rows=8)
    parts = {
        "qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("up_proj",),
        "down": ("down_proj",),
    }  # fmt: skip
    for index, layer in enumerate(model.decoder.weights.layers):
        for weight, modules in parts.items():
            names = [f"layers.{index}.{module}" for module in modules]
            is_plain = any(part in name for name in names for part in left)
            found = getattr(layer, weight)
            assert isinstance(found, LinearWeight if is_plain else GroupedWeight)
    wanted = Driver(load_language_model(dense, max_rows=8)).run((0, TOKENS))
    torch.testing.assert_close(logits_of_expanded(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [(), ("k_proj",)])
@pytest.mark.parametrize("case", ["gptq", "gptq of 8 bits", "fp8 in blocks"])
def test_memory_is_known_before(
    tmp_path: Path, case: str, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, settings, _ = CASES[case]
    sizes = {**SIZES, "vocab_size": 300}
    folder, _ = quantise(tmp_path, make, settings, left, **sizes)
    checkpoint = open_checkpoint(folder)
    config = read_language_config(checkpoint)
    form = weight_form(checkpoint, config, torch.float32, GPU)
    monkeypatch.setattr(loader, "weight_form", lambda *_: form)
    model = load_language_model(folder, max_rows=1)
    assert set(model.decoder.weights.held_in.split(" and ")) == set(form.name.split(" and "))
    estimate = ModelMemory(config, form).weights
    vectors = 4 * sum(t.numel() for t in make_model("qwen2-untied", **sizes).parameters()
                      if t.dim() == 1)  # fmt: skip
    assert abs(estimate - (model.weight_bytes - vectors)) <= vectors
    plain = ModelMemory(config, WeightForm.plain(torch.float32)).weights
    assert estimate < 0.8 * plain


def test_only_a_gpu_keeps_the_bits(tmp_path: Path) -> None:
    make, settings, name = CASES["gptq"]
    folder, dense = quantise(tmp_path, make, settings, **SIZES)
    checkpoint = open_checkpoint(folder)
    config = read_language_config(checkpoint)
    on_gpu = weight_form(checkpoint, config, "bfloat16", GPU)
    assert (on_gpu.grouped, on_gpu.matrix_dtype) == (True, torch.bfloat16)
    assert on_gpu.name == f"{name} and bfloat16"
    on_cpu = weight_form(checkpoint, config, "auto", CPU)
    assert not on_cpu.grouped and on_cpu.name == "float32"
    plain = weight_form(open_checkpoint(dense), config, "bfloat16", GPU)
    assert plain == WeightForm.plain(torch.bfloat16)


@pytest.mark.usefixtures("in_groups")
def test_a_weight_names_the_values_that_a_pass_reads_next(tmp_path: Path) -> None:
    make, settings, _ = CASES["gptq"]
    folder, _ = quantise(tmp_path, make, settings, ("layers.1.",), **SIZES)
    first, plain, last = load_language_model(folder, max_rows=1).decoder.weights.layers
    assert isinstance(first.o, GroupedWeight) and isinstance(first.qkv, GroupedWeight)
    assert first.qkv.next_matrix is first.o.matrix.values
    assert isinstance(first.down, GroupedWeight) and isinstance(plain.qkv, LinearWeight)
    assert first.down.next_matrix is plain.qkv.matrix
    assert isinstance(plain.down, LinearWeight) and isinstance(last.qkv, GroupedWeight)
    assert plain.down.next_matrix is last.qkv.matrix.values


def test_symmetric_weights_need_no_zeros(tmp_path: Path) -> None:
    for bits, stored in ((4, 0x77777777), (8, 0x7F7F7F7F)):
        folder, _ = quantise(tmp_path / str(bits), *gptq_case(bits, 32, "plain")[:2], **SIZES)
        weights = load_file(folder / "model.safetensors")
        name = f"{Q}.qzeros"
        weights[name] = torch.full_like(weights[name], stored)
        save_file(weights, folder / "model.safetensors")
        found = grouped_of(folder)
        tensor, matrix = found[f"{Q}.weight"]
        assert matrix.zeros is None and torch.equal(matrix.expand(), tensor.read())
        assert all(found[other][1].zeros is not None for other in found if other != f"{Q}.weight")


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda shape: gptq(shape, 4, 16, "plain"), gptq_settings()),
        (lambda shape: awq(shape, 16), AWQ_SETTINGS),
        (lambda shape: fp8(shape, (16, 16), ""), fp8_case((16, 16), "")[1]),
        (lambda shape: fp8(shape, (32, 48), ""), fp8_case((32, 48), "")[1]),
    ],
)
def test_groups_that_no_product_reads_are_expanded(
    tmp_path: Path, make: Make, settings: dict[str, Any]
) -> None:
    folder, _ = quantise(tmp_path, make, settings, hidden_size=64, intermediate_size=80)
    assert grouped_of(folder) == {}
    checkpoint = open_checkpoint(folder)
    form = weight_form(checkpoint, read_language_config(checkpoint), torch.float32, GPU)
    assert form == WeightForm.plain(torch.float32)


def fp8_tensor(value: Tensor, scale: Tensor) -> StoredTensor:
    stored = {
        name: StoredTensor(tuple(t.shape), t.dtype, "f", t.nbytes, lambda t=t: t)  # type: ignore[misc]
        for name, t in (("x.weight", value), ("x.weight_scale", scale))
    }
    return expanded(stored, {"quant_method": "fp8"})["x.weight"]


def test_fp8_of_another_range_is_expanded() -> None:
    value = torch.randn(64, 64).to(torch.float8_e5m2)
    found = fp8_tensor(value, torch.ones(1))
    assert found.grouped is None and torch.equal(found.read(), value.float())
    nothing = fp8_tensor(torch.empty(0, 64, dtype=torch.float8_e4m3fn), torch.ones(1))
    assert nothing.grouped is None


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.bfloat16])
def test_scales_of_fp8_in_any_float(dtype: torch.dtype) -> None:
    """Kernels read those of 16 and 32 bits; e8m0 has powers of two."""
    scale = (2.0 ** -torch.arange(1, 9)).view(8, 1).to(dtype)
    found = fp8_tensor(torch.randn(8, 64).to(torch.float8_e4m3fn), scale)
    assert found.grouped is not None
    matrix = found.grouped.make(CPU)
    assert (
        torch.equal(matrix.expand(), found.read()) and matrix.nbytes == found.grouped.on_meta.nbytes
    )
    assert matrix.scales.dtype == (dtype if dtype == torch.bfloat16 else torch.float32)


def changed(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.usefixtures("in_groups")
def test_parts_in_different_orders_are_named(tmp_path: Path) -> None:
    folder, _ = quantise(tmp_path, *CASES["act-order"][:2], **SIZES)
    changed(folder, f"{Q}.g_idx", lambda group: group.flip(0))
    said = r"1\.self_attn\.q_proj\.weight, \S+k_proj\.weight, \S+v_proj\.weight are stored as GPTQ"
    with pytest.raises(ValueError, match=said) as caught:
        load_language_model(folder, max_rows=1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_groups")
def test_groups_of_different_sizes_are_named(tmp_path: Path) -> None:
    folder, _ = quantise(tmp_path, *CASES["act-order"][:2], **SIZES)
    changed(folder, f"{Q}.g_idx", lambda group: group.index_fill(0, torch.tensor([3]), 1))
    said = rf"GPTQ tensor {Q}\.g_idx in \S+ puts 3\d inputs into group 0|puts 31 inputs into group"
    with pytest.raises(ValueError, match=said):
        load_language_model(folder, max_rows=1)


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("bits", [0x7F, 0xFF])
def test_fp8_that_is_no_number_is_named(tmp_path: Path, bits: int) -> None:
    folder, _ = quantise(tmp_path, *CASES["fp8 in blocks"][:2], **SIZES)

    def spoil(value: Tensor) -> Tensor:
        spoiled = value.view(torch.uint8).clone()
        spoiled[5, 7] = bits
        return spoiled.view(torch.float8_e4m3fn)

    changed(folder, f"{Q}.weight", spoil)
    said = rf"FP8 tensor {Q}\.weight in model\.safetensors holds values that are no number"
    with pytest.raises(ValueError, match=said):
        load_language_model(folder, max_rows=1)


def test_names_are_those_of_a_plan() -> None:
    values = torch.zeros(4, 256, dtype=torch.uint8)
    for group, name in ((128, "int4"), (64, "int4-g64"), (256, "int4-channel")):
        scales = torch.ones(4, 256 // group)
        matrix = GroupedMatrix.pack(ValueKind.INT4, values, scales, group_size=group)
        assert name_of(matrix) == name == find_format(name).name
    stored = StoredMatrix.of(torch.ones(2, 2))
    assert name_of(stored) == name_of(torch.ones(2, 2)) == "float32"


def test_kinds(tmp_path: Path) -> None:
    for case, kind in (("awq", ValueKind.INT4), ("gptq of 8 bits", ValueKind.INT8)):
        folder, _ = quantise(tmp_path / kind.value, *CASES[case][:2], **SIZES)
        assert {matrix.kind for _, matrix in grouped_of(folder).values()} == {kind}
