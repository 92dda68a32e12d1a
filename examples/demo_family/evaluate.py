"""Measures the demo family for its model card: each model alone, and RSD.

It is a plain loop over the generation of transformers; `bench.effect` measures the same with the
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.demo_family.data import chat_prompt, encode
from examples.demo_family.recipes import RewardModel, count_parameters
from examples.demo_family.sampling import complete, step_text, written_text
from examples.demo_family.tokenizer import BOS, delimiter_id
from rsd_engine.demo.problems import DELIMITER, Problem, check_answer, check_step, count_right_steps

MAX_STEPS = 12

Scorer = Callable[[Sequence[tuple[str, Sequence[str]]]], list[float]]


@dataclass
class Tally:
    """Costs and decisions of one run over the problems."""

    accuracy: float = 0.0
    draft_tokens: int = 0
    scored_tokens: int = 0
    target_tokens: int = 0
    accepted: int = 0
    proposed: int = 0
    wrong_accepted: int = 0
    right_rejected: int = 0
    wrong: int = 0
    scores: list[float] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)

    def flops(self, draft: int, prm: int, target: int) -> float:
        """Two operations per parameter and token."""
        return 2.0 * (
            draft * self.draft_tokens + prm * self.scored_tokens + target * self.target_tokens
        )


def alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]
) -> tuple[float, float, int]:
    """Accuracy, share of right steps up to the first wrong one, and tokens written."""
    written = complete(model, tokenizer, [chat_prompt(p.question) for p in problems])
    texts = [written_text(tokenizer, ids) for ids in written]
    right = sum(check_answer(p, text) for p, text in zip(problems, texts, strict=True))
    steps = good = 0
    for problem, text in zip(problems, texts, strict=True):
        done = count_right_steps(problem, text.split(DELIMITER))
        good += done
        steps += done + (done < len(problem.steps))
    return right / len(problems), good / steps, sum(len(ids) for ids in written)


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
        _count(tally, tokenizer, problems, done, active, texts, scores, threshold)
        tally.draft_tokens += sum(map(len, drafted))
        tally.scored_tokens += sum(map(len, drafted)) + sum(map(len, rewritten))
        tally.target_tokens += sum(map(len, rewritten))
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


def _count(
    tally: Tally,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    done: Sequence[Sequence[str]],
    active: Sequence[int],
    texts: Sequence[str],
    scores: Sequence[float],
    threshold: float,
) -> None:
    """Counts the decisions; right and wrong only where all earlier steps are right."""
    tally.proposed += len(active)
    tally.accepted += sum(value >= threshold for value in scores)
    for i, text, value in zip(active, texts, scores, strict=True):
        if count_right_steps(problems[i], done[i]) < len(done[i]):
            continue
        right = check_step(problems[i], len(done[i]), text)
        tally.scores.append(value)
        tally.labels.append(right)
        tally.wrong += not right
        tally.wrong_accepted += not right and value >= threshold
        tally.right_rejected += right and value < threshold


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a right step scores higher than a wrong one; ties count half."""
    ranked = sorted(zip(scores, labels, strict=True), key=lambda pair: pair[0])
    wrong = right = 0
    above = 0.0
    index = 0
    while index < len(ranked):
        end = index
        while end < len(ranked) and ranked[end][0] == ranked[index][0]:
            end += 1
        good = sum(label for _, label in ranked[index:end])
        above += good * (wrong + (end - index - good) / 2)
        right, wrong, index = right + good, wrong + end - index - good, end
    return above / max(right * wrong, 1)


def report(
    draft: PreTrainedModel,
    target: PreTrainedModel,
    prm: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
) -> dict[str, float]:
    """Every number of the model card."""
    sizes = [count_parameters(model) for model in (draft, prm, target)]
    draft_accuracy, draft_steps, _ = alone(draft, tokenizer, problems)
    target_accuracy, target_steps, tokens = alone(target, tokenizer, problems)
    tally = speculate(draft, target, scorer(prm, tokenizer), tokenizer, problems)
    baseline = Tally(target_tokens=tokens)
    return {
        "draft accuracy": draft_accuracy,
        "target accuracy": target_accuracy,
        "rsd accuracy": tally.accuracy,
        "draft right steps": draft_steps,
        "target right steps": target_steps,
        "acceptance": tally.accepted / tally.proposed,
        "flops ratio": baseline.flops(*sizes) / tally.flops(*sizes),
        "step auc": auc(tally.scores, tally.labels),
        "wrong steps accepted": tally.wrong_accepted / max(tally.wrong, 1),
        "right steps rejected": tally.right_rejected / max(len(tally.labels) - tally.wrong, 1),
    }
