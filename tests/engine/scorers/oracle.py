"""What scorers on a writer's decoder should say, by transformers' models over whole texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems

PROBLEMS = make_problems(0, "test", 6)
PARAMS = SamplingParams(temperature=0.0, max_tokens=120, max_step_tokens=20, seed=3)


@cache
def model(role: ModelRole) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint_dir(role), dtype=torch.float32)


@torch.no_grad()
def logits(role: ModelRole, row: list[int]) -> Tensor:  # [N, V]
    return model(role)(torch.tensor([row])).logits[0]


@torch.no_grad()
def last_hidden(role: ModelRole, row: list[int]) -> Tensor:  # [hidden], after the final norm
    found = model(role)(torch.tensor([row]), output_hidden_states=True)
    return found.hidden_states[-1][0, -1]


@dataclass(frozen=True)
class Scored:
    """A step that was scored, and the text before it."""

    before: list[int]
    step: list[int]
    reward: float
    kept: bool


def scored_steps(result: RequestOutput) -> Iterator[Scored]:
    """Every step of the draft, kept or not, in the order of their scores."""
    before = list(result.prompt_token_ids)
    for step in result.outputs[0].steps:
        if step.rejected:
            yield Scored(before, list(step.rejected.token_ids), step.rejected.reward, False)
        if step.reward is not None:
            yield Scored(before, list(step.token_ids), step.reward, True)
        before = [*before, *step.token_ids]


def solve(
    engine: Engine, params: SamplingParams = PARAMS, count: int = len(PROBLEMS)
) -> list[RequestOutput]:
    chats = [[{"role": "user", "content": problem.question}] for problem in PROBLEMS[:count]]
    return engine.chat(chats, params, use_tqdm=False)
