"""Train a probe: a linear layer that reads from a writer's hidden state whether a step is right.

Run: python examples/train_probe.py probe.safetensors

The draft solves training problems of the demo family, the exact checker says which of its steps are
right, and logistic regression finds a direction of the target's (or the draft's) hidden state at
the end of each step. Then `Engine(draft, target, scorer=Probe("probe.safetensors"))` needs no
reward model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import DELIMITER, Problem, check_step, generate

PENALTY = 1e-3  # on the squared weights, of standardised hidden states
ITERATIONS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--role", choices=("target", "draft"), default="target")
    parser.add_argument("--problems", type=int, default=400)
    options = parser.parse_args()
    problems = generate(seed=11, split="train", num=options.problems)
    share = train_probe(
        checkpoint_dir("draft"), checkpoint_dir(options.role), problems, options.output
    )
    print(f"{options.output}: {100 * share:.1f} % of the training steps are told right from wrong")


def train_probe(draft: Path, reader: Path, problems: Sequence[Problem], output: Path) -> float:
    """Writes a probe on the hidden states of `reader`; returns its accuracy on its own steps."""
    results = _solve(draft, problems)
    hidden, right = _examples(reader, problems, results)
    weight, bias = fit(hidden, right)
    save_file({"weight": weight[None].contiguous(), "bias": bias[None]}, output)
    return float(((hidden @ weight + bias > 0) == right.bool()).float().mean())


def fit(hidden: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression: weights [size] and bias of sigmoid(w . h + b), the chance to be right.

    Args:
        hidden: [steps, size] float32.
        right: [steps] float32, 1 for right steps.
    """
    mean, scale = hidden.mean(0), hidden.std(0) + 1e-6
    standard = (hidden - mean) / scale
    weight = torch.zeros(hidden.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = standard @ weight + bias
        found = torch.nn.functional.binary_cross_entropy_with_logits(scores, right)
        found = found + PENALTY * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    direction = (weight / scale).detach()
    return direction, (bias - mean @ direction).detach()


def _solve(draft: Path, problems: Sequence[Problem]) -> list[RequestOutput]:
    """What the draft writes: some steps right, some wrong."""
    params = SamplingParams(temperature=0.7, max_tokens=256, seed=5)
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    with Engine(draft=draft, step_delimiters=DELIMITER) as engine:
        return engine.chat(chats, params)


def _examples(
    reader: Path, problems: Sequence[Problem], results: Sequence[RequestOutput]
) -> tuple[Tensor, Tensor]:
    """Hidden states at the steps' ends, after the final norm [steps, size], and verdicts [steps]."""
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    rows, verdicts = [], []
    for problem, result in zip(problems, results, strict=True):
        ends, right = zip(*_judged(problem, result), strict=True)
        rows.append(_hidden(model, result)[torch.tensor(ends) - 1])
        verdicts += right
    return torch.cat(rows), torch.tensor(verdicts, dtype=torch.float32)


@torch.no_grad()
def _hidden(model: Any, result: RequestOutput) -> Tensor:
    """[tokens, size] of prompt and output."""
    ids = torch.tensor([[*result.prompt_token_ids, *result.outputs[0].token_ids]])
    return torch.as_tensor(model.model(ids).last_hidden_state[0])


def _judged(problem: Problem, result: RequestOutput) -> Iterator[tuple[int, bool]]:
    """Yields (tokens up to the end of a step, whether it is right), up to the first wrong one."""
    end = len(result.prompt_token_ids)
    for index, step in enumerate(result.outputs[0].steps):
        end += len(step.token_ids)
        right = check_step(problem, index, step.text.removesuffix(DELIMITER))
        yield end, right
        if not right:
            return


if __name__ == "__main__":
    main()
