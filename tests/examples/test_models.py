"""The shipped checkpoints: within their limits, loadable, and able to reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from bench.compare.step_auc import auc
from examples.demo_family.corrupt import corrupt
from examples.demo_family.recipes import count_parameters
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_engine.demo.problems import generate
from tests.examples.plain_loop import (
    accuracy,
    load_language_model,
    load_reward_model,
    scorer,
    speculate,
)

ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm")
PROBLEMS = generate(21, "test", 12)


def folder() -> Path:
    return checkpoint_dir("target").parent


def test_sizes_obey_the_limits() -> None:
    draft = count_parameters(load_language_model(folder(), "draft"))
    target = count_parameters(load_language_model(folder(), "target"))
    prm = count_parameters(load_reward_model(folder()))
    assert draft <= 500_000
    assert 10 * draft <= target <= 8_000_000
    assert 8 * prm <= target
    total = sum((folder() / role / "model.safetensors").stat().st_size for role in ROLES)
    assert total <= 24 * 2**20


@pytest.mark.parametrize("role", ROLES)
def test_the_folders_are_complete(role: ModelRole) -> None:
    path = checkpoint_dir(role)
    kind = Qwen2Config if role == "prm" else AutoConfig
    config = kind.from_pretrained(path)
    assert config.max_position_embeddings >= 1024
    assert json.loads((path / "tokenizer_config.json").read_text())["chat_template"]
    assert (path / "special_tokens_map.json").is_file()
    assert GenerationConfig.from_pretrained(path).eos_token_id == config.eos_token_id


def test_the_reward_model_has_the_value_head_format() -> None:
    from safetensors import safe_open

    path = checkpoint_dir("prm")
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForPrmModel"]
    with safe_open(path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("v_head.summary.weight").shape == (1, config["hidden_size"])
        assert file.get_tensor("v_head.summary.bias").shape == (1,)
    assert all(name.startswith(("model.", "v_head.summary.")) for name in names)


@pytest.mark.parametrize("role", ["draft", "target"])
def test_language_models_load_in_bfloat16(role: ModelRole) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint_dir(role), dtype=torch.bfloat16, output_loading_info=True
    )
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16


def test_the_target_solves_what_the_draft_often_does_not() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir("target"))
    assert accuracy(load_language_model(folder(), "target"), tokenizer, PROBLEMS) >= 0.8


def test_the_reward_model_separates_right_from_spoiled_steps() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir("prm"))
    score = scorer(load_reward_model(folder()), tokenizer)
    rng = random.Random(0)
    right, spoiled = [], []
    for problem in PROBLEMS:
        for index, step in enumerate(problem.steps):
            right.append((problem.question, problem.steps[: index + 1]))
            wrong = corrupt(rng, problem, index)
            if wrong is not None and wrong != step:
                spoiled.append((problem.question, (*problem.steps[:index], wrong)))
    low = score(spoiled)
    assert auc(score(right), low) >= 0.98
    assert sum(reward < 0.7 for reward in low) / len(low) >= 0.95


def test_speculation_keeps_the_accuracy_at_less_cost() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir("target"))
    draft = load_language_model(folder(), "draft")
    target = load_language_model(folder(), "target")
    prm = load_reward_model(folder())
    tally = speculate(draft, target, scorer(prm, tokenizer), tokenizer, PROBLEMS)
    assert tally.accuracy >= 0.9
    assert 0.5 < tally.accepted / tally.proposed < 1.0
