"""Reward-guided speculative decoding as one would write it at first: no cache, no batch, by text.

Every token is written after a full forward of transformers; every step is scored by a full forward
of the PRM over the text so far, tokenised anew. Only the source of randomness is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from rsd_engine.steps.policies import Policy
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.state.enums import Purpose

DELIMITER = "\n\n"

Choose = Callable[[torch.Tensor, int], int]
"""(logits, tokens of the step so far) -> the next token."""


@dataclass(frozen=True)
class NaiveStep:
    text: str
    source: str
    reward: float | None  # of the draft's step, kept or not
    rejected: str | None


@dataclass(frozen=True)
class NaiveModels:
    """Draft, target and PRM as transformers loads them, in float32.

    What they said once is remembered: policies differ in what they keep, not in what is asked.
    """

    draft: torch.nn.Module
    target: torch.nn.Module
    prm: torch.nn.Module
    head: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerFast
    prm_tokenizer: PreTrainedTokenizerFast
    steps: dict[tuple[object, ...], list[int]] = field(default_factory=dict)
    rewards: dict[tuple[str, ...], float] = field(default_factory=dict)

    @classmethod
    def load(cls, draft: Path, target: Path, prm: Path) -> NaiveModels:
        weights = {n: w.float() for n, w in load_file(prm / "model.safetensors").items()}
        head = {n: weights.pop(n) for n in list(weights) if n.startswith("v_head")}
        backbone = AutoModel.from_config(Qwen2Config.from_pretrained(prm), dtype=torch.float32)
        weights = {n.removeprefix("model."): w for n, w in weights.items() if n != "lm_head.weight"}
        backbone.load_state_dict(weights)

        def writer(path: Path) -> torch.nn.Module:
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            return model.eval()

        return cls(
            writer(draft),
            writer(target),
            backbone.eval(),
            head,
            PreTrainedTokenizerFast.from_pretrained(target),
            PreTrainedTokenizerFast.from_pretrained(prm),
        )


@torch.no_grad()
def naive_rsd(
    models: NaiveModels,
    prompt: list[int],
    question: str,
    policy: Policy,
    max_tokens: int,
    seed: int,
) -> list[NaiveStep]:
    """Greedy RSD of one prompt, a step at a time, until end-of-text or `max_tokens`."""
    tokenizer, ids, steps = models.tokenizer, list(prompt), list[NaiveStep]()
    while len(ids) < len(prompt) + max_tokens and ids[-1] != tokenizer.eos_token_id:
        room = len(prompt) + max_tokens - len(ids)
        drafted = next_step(models, "draft", tokenizer, ids, room)
        kept = [step.text for step in steps]
        reward = reward_of(models, question, [*kept, text_of(tokenizer, drafted)])
        u = uniform(DrawKey(seed, 0, len(steps), len(ids) + len(drafted), Purpose.ACCEPT))
        text = text_of(tokenizer, drafted)
        if u < policy.weight(reward):
            ids += drafted
            steps.append(NaiveStep(text, "draft", reward, None))
        else:
            written = next_step(models, "target", tokenizer, ids, room)
            ids += written
            steps.append(NaiveStep(text_of(tokenizer, written), "target", reward, text))
    return steps


def next_step(
    models: NaiveModels,
    writer: str,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    room: int,
) -> list[int]:
    """What "draft" or "target" writes after `ids`, up to the end of a step."""
    key = (writer, room, tuple(ids))
    if key not in models.steps:
        models.steps[key] = write_step(getattr(models, writer), tokenizer, ids, room)
    return models.steps[key]


def reward_of(models: NaiveModels, question: str, steps: list[str]) -> float:
    """The PRM's reward of the last of `steps`."""
    key = (question, *steps)
    if key not in models.rewards:
        models.rewards[key] = _score(models, question, steps)
    return models.rewards[key]


def greedy(logits: torch.Tensor, written: int) -> int:
    """The most likely id."""
    return int(logits.argmax())


def write_step(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    room: int,
    choose: Choose = greedy,
) -> list[int]:
    """What a model writes after `ids`, up to the end of a step or `room` tokens."""
    step: list[int] = []
    while len(step) < room:
        logits = model(torch.tensor([ids + step])).logits[0, -1, : len(tokenizer)]
        step.append(choose(logits, len(step)))
        text = text_of(tokenizer, step)
        if step[-1] == tokenizer.eos_token_id:
            break
        if DELIMITER in text:
            cut = text.partition(DELIMITER)[0] + DELIMITER
            if cut != text:  # the last token ran past it
                last = cut[len(text_of(tokenizer, step[:-1])) :]
                step[-1:] = tokenizer.encode(last, add_special_tokens=False)
            break
    return step


def _score(models: NaiveModels, question: str, steps: list[str]) -> float:
    tokenizer = models.prm_tokenizer
    separator = tokenizer.encode(DELIMITER, add_special_tokens=False)[-1]
    row = [tokenizer.bos_token_id, *tokenizer.encode(f"{question}\n", add_special_tokens=False)]
    for step in steps:
        row += tokenizer.encode(step.removesuffix(DELIMITER), add_special_tokens=False)
        row.append(separator)
    hidden = models.prm(torch.tensor([row])).last_hidden_state[0, -1]
    logit = hidden @ models.head["v_head.summary.weight"][0] + models.head["v_head.summary.bias"][0]
    return float(logit.sigmoid())


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Without special tokens."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
