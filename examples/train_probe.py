"""Trains a probe: a linear layer on the target's hidden state at the end of a step.

The draft writes solutions of word problems; each step is checked exactly, and a logistic regression
learns from the target's hidden rows which steps are right. The probe then stands in for a PRM:

    python examples/train_probe.py [FILE [TRAINING PROBLEMS [TEST PROBLEMS]]]
    rsd generate --draft ... --target ... --scorer probe:FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rsd_engine import Engine, Probe, RequestOutput, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, check_answer, check_step, generate

DRAFT, TARGET = checkpoint_dir("draft"), checkpoint_dir("target")
PARAMS = SamplingParams(temperature=0.7, max_tokens=200, seed=0)


def solve(engine: Engine, problems: list[Problem], params: SamplingParams) -> list[RequestOutput]:
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    return engine.chat(chats, params)


def train(reader: Path, problems: list[Problem], file: str | Path) -> Tensor:
    """Writes a probe on a writer's hidden rows; returns [N], 1.0 for right steps."""
    with Engine(draft=DRAFT, step_delimiters="\n\n") as engine:
        results = solve(engine, problems, PARAMS)
    rows, labels = hidden_rows(reader, problems, results)
    weight, bias = fit(rows, labels)
    save_file({"weight": weight.contiguous(), "bias": bias}, file)
    return labels


@torch.no_grad()
def hidden_rows(
    reader: Path, problems: list[Problem], results: list[RequestOutput]
) -> tuple[Tensor, Tensor]:
    """[N, hidden] rows at the ends of steps, after the final norm, and [N] 1.0 for right steps."""
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    rows, labels = [], []
    for problem, result in zip(problems, results, strict=True):
        steps = result.outputs[0].steps
        ids = [*result.prompt_token_ids, *result.outputs[0].token_ids]
        found = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        end = len(result.prompt_token_ids)
        for index, step in enumerate(steps):
            end += len(step.token_ids)
            right = check_step(problem, index, step.text)
            rows.append(found[end - 1])
            labels.append(float(right))
            if not right:
                break  # what follows a wrong step is neither right nor wrong
    return torch.stack(rows), torch.tensor(labels)


def fit(rows: Tensor, labels: Tensor, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Logistic regression: weight [1, hidden] and bias [1]."""
    weight = torch.zeros(1, rows.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = rows @ weight[0] + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def main(file: str = "probe.safetensors", num_train: str = "300", num_test: str = "50") -> None:
    labels = train(TARGET, generate(0, "train", int(num_train)), file)
    print(f"{len(labels)} steps, {labels.mean():.0%} of them right; the probe is in {file}")

    problems = generate(0, "test", int(num_test))
    with Engine(draft=DRAFT, target=TARGET, scorer=Probe(file)) as engine:
        for mode in ("draft", "rsd", "target"):
            found = solve(engine, problems, SamplingParams(temperature=0.0, seed=0, mode=mode))
            texts = [result.outputs[0].text for result in found]
            right = sum(check_answer(p, text) for p, text in zip(problems, texts, strict=True))
            print(f"{mode}: {right} of {len(problems)} answers are right")
        print(f"the probe kept {engine.metrics.acceptance_rate:.0%} of the draft's steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
