"""Rewards of given solutions: all in one call, one by one, and every prefix anew.

    python -m bench.score

The demo family solves word problems; the rewards of its solutions' steps must be those of the loop,
and every token of a solution must have been read once. Then three ways to get them are timed: one
call of `Engine.score`, a call for each solution, and the way of a reward model behind a server,
which reads the whole solution again for each of its steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.lib import report
from bench.lib.options import command_parser, default_device, positive
from bench.lib.timing import Mismatch, Timing, alternate
from rsd_engine import Engine, RequestOutput, SamplingParams, ScoredSolution
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.demo.problems import generate

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Solved:
    """A problem that the engine has solved: its steps, and the rewards that the loop gave them."""

    question: str
    steps: list[str]
    rewards: list[float | None]  # None: written by the target, and not scored

    @classmethod
    def of(cls, question: str, result: RequestOutput) -> Solved:
        steps = result.outputs[0].steps
        return cls(question, [step.text for step in steps], [step.reward for step in steps])

    @property
    def prefixes(self) -> list[list[str]]:
        return [self.steps[: k + 1] for k in range(len(self.steps))]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    models: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
    with Engine(**models, device=given.device, max_num_seqs=16, max_model_len=512) as engine:
        solved = solve(engine, given.problems)
        tokens = check(engine, solved)
        ways = contenders(engine, solved)
        times = alternate({name: way for name, (_, way) in ways.items()}, given.runs)
    read = {name: count or tokens for name, (count, _) in ways.items()}
    print(_table(times, read, len(solved)))
    report.print_json(_facts(solved, times, read))
    return 0


def solve(engine: Engine, count: int) -> list[Solved]:
    """Word problems with their solutions by all three models."""
    questions = [problem.question for problem in generate(0, "test", count)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=300)
    results = engine.chat(chats, params, use_tqdm=False)
    return [Solved.of(*pair) for pair in zip(questions, results, strict=True)]


def check(engine: Engine, solved: Sequence[Solved]) -> int:
    """The tokens of all solutions, each counted once.

    Raises:
        Mismatch: a reward is not the loop's, or a token was read more or less than once.
    """
    scored = _score(engine, solved)
    prm = engine.parts.models.prm
    assert prm is not None
    for one, found in zip(solved, scored, strict=True):
        for text, wanted, reward in zip(one.steps, one.rewards, found.rewards, strict=True):
            if wanted is not None and not abs(wanted - reward) <= _TOLERANCE:
                raise Mismatch(
                    f"{text!r} has the reward {wanted} in the loop and {reward} by score"
                )
        ids = prm.format.prompt_ids(one.question)
        for text in one.steps:
            encoded = prm.format.encoder.encode(text.removesuffix("\n\n"), add_special_tokens=False)
            ids += [*encoded.ids, *prm.format.separator_ids]
        if found.tokens_read != len(ids):
            raise Mismatch(f"a solution has {len(ids)} tokens, and {found.tokens_read} were read")
    return sum(found.tokens_read for found in scored)


def contenders(
    engine: Engine, solved: Sequence[Solved]
) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is timed, and the tokens that it reads where these are not each of them once."""
    again = [Solved(one.question, steps, []) for one in solved for steps in one.prefixes]
    tokens = sum(found.tokens_read for found in _score(engine, again))
    return {
        "one call": (0, lambda: _score(engine, solved)),
        "a call for each solution": (0, lambda: [_score(engine, [one]) for one in solved]),
        "every step with all before it": (tokens, lambda: _score(engine, again)),
    }


def _score(engine: Engine, solved: Sequence[Solved]) -> list[ScoredSolution]:
    return engine.score([one.question for one in solved], [one.steps for one in solved])


def _table(times: dict[str, Timing], tokens: dict[str, int], count: int) -> str:
    rows = [
        [
            name, f"{tokens[name]}", f"{time.median:.3f}", f"{time.spread:.0%}",
            f"{count / time.median:.0f}",
        ]
        for name, time in times.items()
    ]  # fmt: skip
    headers = (f"{count} solutions", "tokens read", "seconds", "spread", "solutions per second")
    return report.format_table(headers, rows)


def _facts(
    solved: Sequence[Solved], times: dict[str, Timing], tokens: dict[str, int]
) -> dict[str, Any]:
    return {
        "bench": "score",
        "solutions": len(solved),
        "steps": sum(len(one.steps) for one in solved),
        "compared": sum(reward is not None for one in solved for reward in one.rewards),
        "ways": {
            name: {"seconds": list(time.seconds), "tokens_read": tokens[name]}
            for name, time in times.items()
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("score", __doc__)
    parser.add_argument("--problems", type=positive, default=200)
    parser.add_argument("--runs", type=positive, default=5, help="of each way, in turn")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: all)")
    parser.add_argument("--device", default=str(default_device()))
    return parser
