"""A family of PRMs and a base architecture are each one file: here they are added and run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.models.loader import load_language_model
from tests.engine.harness.runs import PROMPTS, generate
from tests.engine.test_fidelity import same_or_tie, transformers_tokens
from tests.models.added_module import added_module
from tests.models.checkpoints import edit_config, make_model, save
from tests.models.driver import Driver
from tests.steps.toy_tokenizers import smollm_like
from tests.tiny_models import TinyModels

TOY_PRM = """
from rsd_engine.models.decoders.llama import LLAMA
from rsd_engine.models.reward.family import PrmFormat, RewardFamily, encode
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ValueHead


def _format(tokenizer):
    encoder = plain_encoder(tokenizer)
    separator = tuple(encode(encoder, "##"))
    return PrmFormat((), "Q: ", "\\n", (), separator_ids=separator, encoder=encoder)


TOY = RewardFamily(
    name="Toy-PRM",
    architectures={"LlamaForToyPrm": LLAMA},
    head=ValueHead,
    head_tensors={"reward.weight": "weight", "reward.bias": "bias"},
    head_dtype=None,
    format=_format,
    threshold=0.45,
)
"""
TOY_DECODER = """
from rsd_engine.models.decoders.family import DecoderFamily, GgufRules

TOY = DecoderFamily(
    architecture="ToyForCausalLM",
    gguf=GgufRules("toy"),
    defaults={"head_dim": 16},
    qk_norm=True,
)
"""


@pytest.fixture
def toy_prm(tiny: TinyModels, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of the added family, made of the tiny PRM's."""
    prm = tmp_path / "prm"
    shutil.copytree(tiny.prm, prm)
    weights = load_file(prm / "model.safetensors")
    decoder = {n: w for n, w in weights.items() if not n.endswith("proj.bias")}
    named = {n.replace("v_head.summary", "reward"): w for n, w in decoder.items()}
    save_file(named, prm / "model.safetensors")
    edit_config(prm, architectures=["LlamaForToyPrm"], model_type="llama")
    with added_module("rsd_engine.models.reward", "toy_prm", TOY_PRM, tmp_path):
        yield prm


def rewards_by_transformers(prm: Path, rows: list[list[int]]) -> Tensor:  # [len(rows)]
    weights = load_file(prm / "model.safetensors")
    weight, bias = weights.pop("reward.weight"), weights.pop("reward.bias")
    config = LlamaConfig.from_dict(json.loads((prm / "config.json").read_text()))
    model = LlamaModel(config).eval()
    model.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()})
    with torch.no_grad():
        last = [model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    return torch.sigmoid(torch.stack(last) @ weight[0] + bias)


def test_a_reward_family(toy_prm: Path, tiny: TinyModels, caplog: pytest.LogCaptureFixture) -> None:
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=60)
    with caplog.at_level(logging.INFO, "rsd_engine"):
        engine = Engine(tiny.draft, tiny.target, toy_prm, device="cpu")
    with engine:
        assert engine.parts.rules.policy == Threshold(0.45)
        assert "policy: threshold 0.45, the default of Toy-PRM" in caplog.text
        results = generate(engine, PROMPTS, params)
        encoder = engine.get_tokenizer().backend_tokenizer

        def ids(text: str) -> list[int]:
            return encoder.encode(text, add_special_tokens=False).ids

        rows, rewards = [], []
        for result in results:
            row = ids(f"Q: {result.prompt}\n")
            for step in result.outputs[0].steps:
                if step.rejected:
                    assert step.rejected.reward < 0.45
                    rows.append(row + ids(step.rejected.text.removesuffix("\n\n")) + ids("##"))
                    rewards.append(step.rejected.reward)
                row = row + ids(step.text.removesuffix("\n\n")) + ids("##")
                if step.reward is not None:
                    assert step.reward >= 0.45
                    rows.append(row)
                    rewards.append(step.reward)
    wanted = rewards_by_transformers(toy_prm, rows)
    torch.testing.assert_close(torch.tensor(rewards), wanted, rtol=0, atol=1e-4)
    assert min(rewards) < 0.45 < max(rewards) and len(rewards) > 10


@pytest.fixture
def toy_decoder(tmp_path: Path) -> Iterator[Any]:
    """A transformers model of the added architecture."""
    tokenizer = smollm_like()
    model = make_model("qwen3", vocab_size=tokenizer.get_vocab_size())
    with added_module("rsd_engine.models.decoders", "toy_decoder", TOY_DECODER, tmp_path):
        yield model


def test_a_base_architecture(toy_decoder: Any, tmp_path: Path) -> None:
    folder = save(toy_decoder, tmp_path / "toy")
    edit_config(folder, drop=("head_dim",), architectures=["ToyForCausalLM"])
    tokens = [5, 1, 44, 60, 2, 17, 30, 30, 9]
    found = Driver(load_language_model(folder, max_rows=16)).run((0, tokens))
    with torch.no_grad():
        wanted = toy_decoder(torch.tensor([tokens])).logits[0, -1:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_base_architecture_from_gguf(toy_decoder: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.models.gguf_files import write_gguf

    toy_decoder.config.model_type = "toy"
    path = write_gguf(tmp_path / "toy.gguf", toy_decoder, tokenizer=smollm_like())
    params = SamplingParams(temperature=0.0, max_tokens=20)
    with Engine(target=path, step_delimiters=None, device="cpu") as engine:
        assert engine.parts.models.main.model.config.architecture == "ToyForCausalLM"
        for result in generate(engine, ["one 12", "x"], params):
            wanted = transformers_tokens(toy_decoder, list(result.prompt_token_ids), 20, eos=[0])
            assert same_or_tie(engine, result, wanted)
