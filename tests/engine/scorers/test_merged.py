"""A PRM that is the target's decoder with a head: one set of weights, the same decisions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_engine import Constant, Engine
from rsd_engine.demo import checkpoint_dir
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import all_pages_free, decisions
from tests.engine.scorers.oracle import PARAMS, scored_steps, solve

HEAD = "v_head.summary"


def with_value_head(folder: Path) -> Path:
    """The demo target, and a value head in the same file."""
    shutil.copytree(checkpoint_dir("target"), folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights[f"{HEAD}.weight"] = torch.randn(1, 256, generator=generator) / 16
    weights[f"{HEAD}.bias"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def linked(folder: Path, other: Path) -> Path:
    """A folder with the same file of weights, under another name, and a config of its own."""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("*.safetensors"))
    (other / "model.safetensors").hardlink_to(folder / "model.safetensors")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"_name_or_path": "a PRM"}))
    return other


def opened(target: Path, prm: Path, **options: Any) -> Engine:
    return Engine(
        checkpoint_dir("draft"), target, prm, policy=Constant(0.5), device="cpu",
        dtype="float32", max_model_len=400, max_num_seqs=4, **options,
    )  # fmt: skip


def test_one_set_of_weights_and_the_same_rewards(tmp_path: Path) -> None:
    model = with_value_head(tmp_path / "merged")
    apart = Path(shutil.copytree(model, tmp_path / "copy"))
    with opened(apart, model) as engine:
        expected = solve(engine)
        [alone] = engine.score("2 + 3?", ["2 + 3 = 5", "5"])
        report = engine.memory
        decoder = report.weights[Role.PRM]
        assert decoder > 10**6
    for prm in (model, linked(model, tmp_path / "linked")):
        with opened(model, prm) as engine:
            results = solve(engine)
            [given] = engine.score("2 + 3?", ["2 + 3 = 5", "5"])
            assert given.rewards == pytest.approx(alone.rewards, abs=1e-5)
            assert all_pages_free(engine)
            models = engine.parts.models
            assert models.prm is not None
            assert models.prm.model.decoder is models.writers[Role.TARGET].model.decoder
            assert engine.memory.weights[Role.PRM] < 4 * 300
            assert engine.memory.total < report.total - decoder
            assert engine.memory.pages[Role.PRM] == report.pages[Role.PRM]
        assert [decisions(r) for r in results] == [decisions(r) for r in expected]
        for ours, theirs in zip(results, expected, strict=True):
            rewards = [s.reward for s in scored_steps(ours)]
            assert rewards == pytest.approx([s.reward for s in scored_steps(theirs)], abs=1e-5)
            assert ours.metrics.flops == theirs.metrics.flops


def test_executors_decide_alike(tmp_path: Path) -> None:
    model = with_value_head(tmp_path / "merged")
    told = []
    for executor in ("eager", "simulated-loop"):
        with opened(model, model, executor=executor) as engine:
            told.append([decisions(result) for result in solve(engine, PARAMS)])
    assert told[0] == told[1]


def test_other_overrides_are_other_models(tmp_path: Path) -> None:
    model = with_value_head(tmp_path / "merged")
    overrides = {"prm": {"rope_theta": 20000.0}}
    with opened(model, model, hf_overrides=overrides) as engine:
        models = engine.parts.models
        assert models.prm is not None
        assert models.prm.model.decoder is not models.writers[Role.TARGET].model.decoder
