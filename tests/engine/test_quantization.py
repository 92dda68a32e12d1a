"""`quantization` rounds the weights of all roles, or of each, as they are loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from rsd_engine import Engine, SamplingParams
from rsd_engine.engine.model_sources import OpenOptions
from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, decisions, generate
from tests.models.checkpoints import make_model
from tests.models.gguf_files import write_gguf
from tests.tiny_models import TinyModels

GREEDY = SamplingParams(temperature=0.0, max_tokens=30)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def held(engine: Engine) -> dict[str, str]:
    models = engine.parts.models.models
    return {role.name.lower(): m.decoder.weights.held_in for role, m in models.items()}


def test_of_all_models_or_by_role(tiny: TinyModels) -> None:
    plain = dict.fromkeys(("draft", "target", "prm"), "float32")
    for quantization, changed in (
        # Most of the target's matrices have rows of no whole number of blocks.
        ("int8", {"draft": "Q8_0", "target": "float32 and Q8_0", "prm": "Q8_0"}),
        ({"prm": "int4", "draft": "int8"}, {"prm": "Q4_1 and Q8_0", "draft": "Q8_0"}),
        ({}, {}),
    ):
        with Engine(**tiny.sources(), device="cpu", quantization=quantization) as engine:
            assert held(engine) == plain | changed
            results = generate(engine, PROMPTS, GREEDY)
            assert all(result.outputs[0].token_ids for result in results)


def test_one_source_in_two_roles(tiny: TinyModels) -> None:
    """Draft and target are one model unless they are quantised differently."""
    sources = tiny.sources() | {"target": tiny.draft}
    with Engine(**sources, device="cpu", quantization="int8") as engine:
        assert engine.memory.weights[Role.TARGET] == 0
        same = [decisions(r) for r in generate(engine, PROMPTS, GREEDY)]
    by_role = {"draft": "int4", "target": "int8"}
    with Engine(**sources, device="cpu", quantization=by_role) as engine:
        draft, target = (engine.memory.weights[role] for role in (Role.DRAFT, Role.TARGET))
        assert 0 < draft < target
        assert [decisions(r) for r in generate(engine, PROMPTS, GREEDY)] != same


def test_the_report_counts_the_blocks(tiny: TinyModels) -> None:
    sizes = []
    for quantization in (None, "int8"):
        with Engine(draft=tiny.draft, device="cpu", quantization=quantization) as engine:
            sizes.append(engine.memory.weights[Role.DRAFT])
    assert 34 / 128 < sizes[1] / sizes[0] < 0.3  # and norms


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"quantization": "int3"}, "quantization of target is 'int3'; it must be one of 'int8', "),
        ({"quantization": {"target": 4}}, "quantization of target is 4; it must be one of 'int8'"),
        ({"quantization": {"draft": "int8"}}, "quantization has 'draft'; the roles here are"),
        ({"quantization": 8}, "quantization must be a dict by role, got 8"),
        (
            {"quantization": "int8", "dtype": "bfloat16"},
            "quantization='int8' on a CPU is for float32 and the CPU library, and dtype='bfloat16'",
        ),
        ({"quantization": "int8", "dtype": torch.float16}, "and dtype=torch.float16"),
        (
            {"quantization": {"target": "fp8"}},
            "quantization 'fp8' is for a GPU, and the device is cpu; take one of int8, int4",
        ),
    ],
)
def test_what_is_not_allowed(tiny: TinyModels, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        Engine(target=tiny.target, device="cpu", **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("word", ["fp8", "int8", "int4"])
def test_on_a_gpu_in_any_dtype(word: str) -> None:
    for dtype in ("auto", "bfloat16", torch.float16):
        OpenOptions(quantization=word).check_computed(dtype, torch.device("cuda", 0))


def test_without_the_library(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "available", lambda: False)
    with pytest.raises(ValueError, match="and the CPU library, which is"):
        Engine(target=tiny.target, device="cpu", quantization="int8")


def test_a_file_in_blocks_names_role_and_format(tiny: TinyModels, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(
        tmp_path / "model.gguf", make_model("llama3", intermediate_size=64), quantise=kind
    )
    with pytest.raises(ValueError, match=r"^draft: .*needs plain weights.*is stored as Q8_0"):
        Engine(path, tiny.target, tiny.prm, device="cpu", quantization="int4")


def test_a_second_start_says_that_it_is_ready(
    tiny: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for _ in range(2):
        with (
            caplog.at_level(logging.INFO, "rsd_engine"),
            Engine(target=tiny.target, device="cpu", quantization="int4") as engine,
        ):
            found.append([decisions(r) for r in generate(engine, PROMPTS, GREEDY)])
    assert found[0] == found[1]
    assert caplog.text.count("matrices in int4, ready after") == 2
