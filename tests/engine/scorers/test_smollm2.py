"""Scorers on a real model, SmolLM2-135M-Instruct, as draft and target: scores as transformers'."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("gguf")

from rsd_engine import Confidence, Constant, Engine, Probe, SamplingParams, Scorer, TargetJudge
from tests.engine.scorers.oracle import Scored, scored_steps
from tests.models.gguf_files import find_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPTS = ["What is 7 plus 5?", "Name three colours.", "Why is the sky blue?"]
JUDGE = TargetJudge(question="Is it right? From 0 to 9.", answer="It is ")


@pytest.fixture(scope="module")
def path() -> Path:
    return find_smollm2()


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Any]:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
    from transformers import AutoModelForCausalLM

    yield AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def scored(path: Path, scorer: Scorer) -> tuple[list[Scored], Any]:
    """The steps of some answers as the engine scored them, and its tokenizer."""
    params = SamplingParams(temperature=0.0, max_tokens=48, max_step_tokens=16, seed=1)
    with Engine(
        path, path, scorer=scorer, policy=Constant(0.5), device="cpu", dtype="float32",
        max_model_len=512, max_num_seqs=3, step_ends="tokens",
    ) as engine:  # fmt: skip
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        results = engine.chat(chats, params, use_tqdm=False)
        found = [step for result in results for step in scored_steps(result)]
        assert len(found) >= 6
        return found, engine.get_tokenizer()


@torch.no_grad()
def outputs(model: Any, row: list[int]) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and hidden rows after the final norm [N, hidden]."""
    found = model(torch.tensor([row]), output_hidden_states=True)
    return found.logits[0], found.hidden_states[-1][0]


@pytest.mark.parametrize("measure", ["logprob", "entropy"])
def test_confidence(path: Path, model: Any, measure: str) -> None:
    for step in scored(path, Confidence(measure))[0]:
        row = [*step.before, *step.step]
        logprobs = outputs(model, row)[0][len(step.before) - 1 : -1].log_softmax(-1)
        if measure == "logprob":
            wanted = logprobs[torch.arange(len(step.step)), step.step].mean().exp()
        else:
            entropy = -(logprobs.exp() * logprobs).sum(-1)
            wanted = (1 - entropy / math.log(logprobs.shape[-1])).mean()
        assert step.reward == pytest.approx(float(wanted), abs=1e-4)


def test_judge(path: Path, model: Any) -> None:
    found, tokenizer = scored(path, JUDGE)
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    asked = (
        f"<|im_end|>\n<|im_start|>user\n{JUDGE.question}<|im_end|>\n"
        f"<|im_start|>assistant\n{JUDGE.answer}"
    )
    for step in found:
        body = [*step.before, *step.step]
        body = body[:-1] if body[-1] == end else body
        row = [*body, *tokenizer.encode(asked, add_special_tokens=False)]
        shares = outputs(model, row)[0][-1, digits].softmax(0)
        assert step.reward == pytest.approx(float(shares @ (torch.arange(10) / 9)), abs=1e-4)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_probe(path: Path, model: Any, role: Any, tmp_path: Path) -> None:
    weight = torch.randn(1, 576, generator=torch.Generator().manual_seed(0)) / 24
    file = tmp_path / "probe.safetensors"
    save_file({"weight": weight, "bias": torch.tensor([0.1])}, file)
    for step in scored(path, Probe(file, role=role))[0]:
        hidden = outputs(model, [*step.before, *step.step])[1][-1]
        wanted = torch.sigmoid(weight[0] @ hidden + 0.1)
        assert step.reward == pytest.approx(float(wanted), abs=1e-4)
