"""RSD as a plain loop over transformers, and each model of the demo family alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from examples.demo_family.data import chat_prompt, encode
from examples.demo_family.recipes import RewardModel
from examples.demo_family.sampling import complete, step_text, written_text
from examples.demo_family.tokenizer import BOS, delimiter_id
from rsd_engine.demo import ModelRole
from rsd_engine.demo.problems import DELIMITER, Problem, check_answer

MAX_STEPS = 12

Scorer = Callable[[Sequence[tuple[str, Sequence[str]]]], list[float]]


def load_language_model(folder: Path, role: ModelRole) -> LlamaForCausalLM:
    """An exported draft or target, in single precision for the CPU."""
    model = AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
    return model.eval()


def load_reward_model(folder: Path) -> RewardModel:
    """The exported reward model, in single precision for the CPU."""
    model = RewardModel("sdpa")
    state = load_file(folder / "prm" / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


@dataclass
class Tally:
    """Outcome and decisions of one run over the problems."""

    accuracy: float = 0.0
    accepted: int = 0
    proposed: int = 0


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]
) -> float:
    """Share of right answers of one model alone."""
    written = complete(model, tokenizer, [chat_prompt(p.question) for p in problems])
    texts = [written_text(tokenizer, ids) for ids in written]
    return sum(check_answer(p, text) for p, text in zip(problems, texts, strict=True)) / len(
        problems
    )


def reward_ids(
    tokenizer: PreTrainedTokenizerFast, question: str, steps: Sequence[str]
) -> list[int]:
    """What the reward model reads; at its last token the last step is judged."""
    separator = delimiter_id(tokenizer)
    ids, *pieces = encode(tokenizer, [f"{BOS}{question}\n", *steps])
    for piece in pieces:
        ids = ids + piece + [separator]
    return ids


def scorer(model: RewardModel, tokenizer: PreTrainedTokenizerFast, batch: int = 128) -> Scorer:
    """A function that scores the last step of each (question, steps)."""

    @torch.inference_mode()
    def score(items: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        rows = [reward_ids(tokenizer, question, steps) for question, steps in items]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            ids = torch.zeros(len(group), len(rows[group[-1]]), dtype=torch.long)
            for i, index in enumerate(group):
                ids[i, : len(rows[index])] = torch.tensor(rows[index])
            last = torch.tensor([len(rows[index]) - 1 for index in group])
            hidden = model.hidden(ids)[torch.arange(len(group)), last]
            for index, value in zip(
                group, model.logits(hidden).float().sigmoid().tolist(), strict=True
            ):
                scores[index] = value
        return scores

    return score


def speculate(
    draft: PreTrainedModel,
    target: PreTrainedModel,
    score: Scorer,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    threshold: float = 0.7,
) -> Tally:
    """The draft writes a step, the PRM scores it, the target rewrites it below the threshold."""
    tally = Tally()
    done: list[list[str]] = [[] for _ in problems]
    active = list(range(len(problems)))
    while active:
        prompts = [_prefix(problems[i], done[i]) for i in active]
        drafted = complete(draft, tokenizer, prompts, step=True)
        texts = [step_text(tokenizer, ids) for ids in drafted]
        scores = score(
            [(problems[i].question, [*done[i], t]) for i, t in zip(active, texts, strict=True)]
        )
        rejected = [k for k, value in enumerate(scores) if value < threshold]
        rewritten = complete(target, tokenizer, [prompts[k] for k in rejected], step=True)
        tally.proposed += len(active)
        tally.accepted += len(active) - len(rejected)
        final = dict(enumerate(drafted)) | dict(zip(rejected, rewritten, strict=True))
        following = []
        for k, i in enumerate(active):
            done[i].append(step_text(tokenizer, final[k]))
            if final[k][-1] == delimiter_id(tokenizer) and len(done[i]) < MAX_STEPS:
                following.append(i)
        active = following
    right = [check_answer(p, DELIMITER.join(s)) for p, s in zip(problems, done, strict=True)]
    tally.accuracy = sum(right) / len(problems)
    return tally


def _prefix(problem: Problem, steps: Sequence[str]) -> str:
    return chat_prompt(problem.question) + "".join(step + DELIMITER for step in steps)
